"""Small random checkpoints in the published file layout, for the tests of export and fine-tuning."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import transformers

from tools.export import verify

ROOT = Path(__file__).resolve().parents[3]
# Words of two tokens, of one to four, and several words a label of several lengths with a prior.
TAXONOMIES = [ROOT / "config" / "taxonomies" / "tnews.toml", *(ROOT / "tests" / "goldens" / "taxonomies" / f"{name}.toml" for name in ("ragged", "words"))]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class Shape:
    """Sizes in the ratios of a published model; `rows` more embedding rows than words, as 1.3B has."""

    family: str
    hidden: int
    layers: int
    heads: int
    rows: int = 0
    activation: str = "gelu"


SHAPES = {
    "bert-base": Shape("Bert", 48, 3, 3),
    "bert-large": Shape("Bert", 64, 4, 4),
    "macbert-gelu-new": Shape("Bert", 32, 2, 2, activation="gelu_new"),
    "megatron-1.3b": Shape("MegatronBert", 64, 4, 8, rows=120),
    "megatron-deep": Shape("MegatronBert", 32, 5, 2),
}


@cache
def vocabulary() -> tuple:
    """Every sign of the sentences, prompts and label words, and the letters as pieces; [MASK] at 103 as published."""
    texts = "".join(verify.texts()) + "".join(path.read_text(encoding="utf-8") for path in TAXONOMIES)
    signs = sorted(sign for sign in set(texts.lower()) if sign.isprintable() and not sign.isspace())
    signs = [sign for sign in signs if sign not in "😀🎁龘"]
    pieces = ["##" + sign for sign in "abcdefghijklmnopqrstuvwxyz0123456789"]
    unused = [f"[unused{index}]" for index in range(1, 100)]
    return ("[PAD]", *unused, *SPECIAL[1:], "<S>", *signs, *pieces)


def random_model(shape: Shape, seed: int = 7):
    """A model whose answers differ from text to text, norms and biases included."""
    config_class = getattr(transformers, f"{shape.family}Config")
    model_class = getattr(transformers, f"{shape.family}ForMaskedLM")
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=len(vocabulary()) + shape.rows, hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden, max_position_embeddings=512, hidden_act=shape.activation, architectures=[model_class.__name__],
    )  # fmt: skip
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        scale = 0.1 if parameter.dim() == 1 else 0.1 if "position" in name or "type" in name else 0.25
        centre = 1.0 if parameter.dim() == 1 and (parameter == 1).all() else 0.0
        parameter.data = torch.randn_like(parameter) * scale + centre
    return model


def save(folder: Path, model, *, tokenizer_config: dict | None = None, drop=()) -> Path:
    """config.json, vocab.txt and pytorch_model.bin, nothing else, as the hub's 330M repository holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(tuple(drop) or ("\0",))}
    torch.save(state, folder / "pytorch_model.bin")
    return folder
