"""Reads a published checkpoint: config.json, the vocabulary and the weights, into a transformers model in fp32.

Owns the checks of what the user gave and the words in which it is refused. Weights are read as tensors only: safetensors, or
torch.load(weights_only=True), which runs no pickled code. Knows nothing of graphs.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers.modeling_utils import no_init_weights

from . import tokenizer as tokenizers
from .errors import Refusal

transformers.logging.set_verbosity_error()  # its advice is for other programs

FAMILIES = {
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM),
    "megatron-bert": (transformers.MegatronBertConfig, transformers.MegatronBertForMaskedLM),
}
MODEL_TYPES = {"BertForMaskedLM": "bert", "BertForPreTraining": "bert", "BertModel": "bert", "MegatronBertForMaskedLM": "megatron-bert",
               "MegatronBertForPreTraining": "megatron-bert", "MegatronBertModel": "megatron-bert"}  # fmt: skip
HEAD = "cls.predictions.transform.dense.weight"
WORDS = "bert.embeddings.word_embeddings.weight"
# Of BertForPreTraining or older transformers; the masked-language model has no use for them.
IGNORED = re.compile(r"^(bert\.pooler\.|cls\.seq_relationship\.)|\.(position_ids|token_type_ids)$")
HUB_FILES = ["config.json", "vocab.txt", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "README.md",
             "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"]  # fmt: skip


@dataclass
class Checkpoint:
    """A model ready to trace, its tokenizer, and where both came from."""

    model: torch.nn.Module
    tokenizer: transformers.BertTokenizerFast
    architecture: str
    source: str
    revision: str
    license: str

    @property
    def max_tokens(self) -> int:
        return self.model.config.max_position_embeddings


def load(name: str) -> Checkpoint:
    """Loads a folder or a hub id; raises Refusal for what cannot be used."""
    folder, source, revision = locate(name)
    settings = read_json(folder / "config.json")
    model_type = family(settings)
    config_class, model_class = FAMILIES[model_type]
    files = weight_files(folder)
    tokenizer = tokenizers.load(folder)
    state = canonical(read_weights(files), settings)
    # Both families are traced with the plain attention: the optimizer knows its pattern.
    config = config_class.from_dict({**settings, "attn_implementation": "eager"})
    check_sizes(config, state, tokenizer)
    with no_init_weights():
        model = model_class(config)
    fill(model, state)
    model.eval().requires_grad_(False)
    revision = revision or "sha256:" + digest(files)
    return Checkpoint(model, tokenizer, model_class.__name__, source, revision, license_of(folder))


def locate(name: str):
    """The folder of a checkpoint, what to call its source, and its revision if a hub knows one."""
    folder = Path(name)
    if folder.is_dir():
        return folder, folder.resolve().name, None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or folder.exists():
        raise Refusal(f"{name} is neither a folder nor a model's name on the hub (owner/model)")
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        names = list_repo_files(name)
        # One layout of the weights is enough.
        skip = ["pytorch_model*"] if any(n.endswith(".safetensors") for n in names) else []
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=skip))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = "the hub does not give it" if isinstance(error, HfHubHTTPError) else "the hub cannot be reached"
        raise Refusal(
            f"cannot fetch {name}: {reason} ({type(error).__name__}). Where there is no access to it, download config.json, "
            "vocab.txt and the weights elsewhere and give their folder as CHECKPOINT"
        ) from error
    return folder, name, folder.name


def read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"{path.parent} has no {path.name}: it is not a checkpoint in the published layout") from None
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(f"{path} does not hold a JSON object")
    return value


def family(settings: dict) -> str:
    """The model type, from `architectures` and `model_type`; refuses what is not a BERT of one of the two families."""
    architectures = settings.get("architectures") or []
    supported = "supported are BertForMaskedLM and MegatronBertForMaskedLM"
    known = {MODEL_TYPES[a] for a in architectures if a in MODEL_TYPES}
    if architectures and not known:
        if settings.get("model_type") in FAMILIES:
            raise Refusal(f"architecture {architectures[0]} has no masked-language head that could be exported; {supported}")
        raise Refusal(f"architecture {architectures[0]} is not supported; {supported}")
    model_type = settings.get("model_type") or next(iter(known), None)
    if model_type not in FAMILIES or (known and model_type not in known):
        raise Refusal(f"model_type {model_type!r} with architectures {architectures} is not supported; {supported}")
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise Refusal(f"position_embedding_type {settings['position_embedding_type']!r} is not supported, only 'absolute'")
    return model_type


def weight_files(folder: Path) -> list:
    """The files with the weights, safetensors before pickled ones, whole before sharded."""
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        path = folder / name
        if not path.exists():
            continue
        if not name.endswith(".index.json"):
            return [path]
        shards = [folder / shard for shard in sorted(set(read_json(path).get("weight_map", {}).values()))]
        missing = [shard.name for shard in shards if not shard.exists()]
        if missing or not shards:
            raise Refusal(f"{folder} lacks {missing[0] if missing else 'every file'} that {name} lists")
        return shards
    raise Refusal(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def read_weights(files: list) -> dict:
    state = {}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                state.update(load_file(str(path)))
                continue
            try:
                part = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files from before torch 1.6 are no archives and cannot be mapped
                part = torch.load(path, map_location="cpu", weights_only=True)
            state.update(part.get("state_dict", part))
        except Exception as error:  # a damaged file, or pickled code that weights_only refuses
            reason = str(error).strip().splitlines()
            raise Refusal(f"{path} cannot be read as weights: {reason[0] if reason else type(error).__name__}") from None
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def canonical(state: dict, settings: dict) -> dict:
    """The weights under the names that transformers uses today, without what the model has no use for."""
    words = next((name for name in state if name.endswith("embeddings.word_embeddings.weight")), None)
    if words is None:
        raise Refusal("the weights hold no embeddings.word_embeddings.weight: they are not of a BERT")
    base = words[: -len("embeddings.word_embeddings.weight")]  # "bert.", "", or with a wrapper's name before it
    wrapper = base[: -len("bert.")] if base.endswith("bert.") else None
    named = {}
    for name, tensor in state.items():
        if wrapper is None:  # a bare encoder: its names stand without "bert."
            name = name if name.startswith("cls.") else "bert." + name[len(base) :] if name.startswith(base) else name
        elif name.startswith(wrapper):
            name = name[len(wrapper) :]
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if not IGNORED.search(name):
            named[name] = tensor
    if HEAD not in named:
        raise Refusal(
            "the weights hold an encoder without a masked-language head (cls.predictions.*); TCBert tags by predicting masked "
            "words and needs it. Use the checkpoint that was saved from BertForMaskedLM"
        )
    named.setdefault("cls.predictions.decoder.weight", named[WORDS])
    named.setdefault("cls.predictions.bias", named.get("cls.predictions.decoder.bias"))
    named["cls.predictions.decoder.bias"] = named["cls.predictions.bias"]
    if settings.get("tie_word_embeddings", True):
        named["cls.predictions.decoder.weight"] = named[WORDS]
    return named


def check_sizes(config, state: dict, tokenizer) -> None:
    rows = state[WORDS].shape[0]
    if rows != config.vocab_size:
        raise Refusal(f"config.json says vocab_size {config.vocab_size}, the word embedding has {rows} rows")
    words = max(tokenizer.get_vocab().values()) + 1
    if words > rows:
        raise Refusal(f"the vocabulary has {words} words, the word embedding only {rows} rows: vocab.txt is of another model")


def fill(model, state: dict) -> None:
    """Copies the weights into the model; every parameter must be there with its shape."""
    own = model.state_dict()
    missing = sorted(name for name in own if name not in state or state[name] is None)
    if missing:
        raise Refusal(f"the weights lack {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise Refusal(f"{name} has shape {list(state[name].shape)}, config.json asks for {list(tensor.shape)}")
        if not state[name].isfinite().all():
            raise Refusal(f"{name} holds values that are not finite")
    unknown = sorted(name for name in state if name not in own and name.startswith(("bert.", "cls.")))
    if unknown:
        raise Refusal(f"the weights hold {unknown[0]}, which this architecture does not have (num_hidden_layers in config.json?)")
    model.load_state_dict({name: state[name] for name in own})
    model.tie_weights()


def digest(files: list) -> str:
    whole = hashlib.sha256()
    for path in files:
        with open(path, "rb") as source:
            while chunk := source.read(1 << 22):
                whole.update(chunk)
    return whole.hexdigest()


def license_of(folder: Path) -> str:
    """The licence that the model card's header names."""
    card = folder / "README.md"
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2) if card.exists() else []
    found = re.search(r"^license:\s*(\S+)", parts[1], re.MULTILINE) if len(parts) == 3 and not parts[0].strip() else None
    return found.group(1) if found else "unknown"
