"""The network: a small BERT with the published parameter names, and the two heads that TCBert reads.

Owns the forward pass and the reading and writing of checkpoints. Knows nothing of data, losses or ONNX files.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

# bfloat16 is emulated, hence slower, where the processor has no instructions for it.
HALF = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the keys are those of a published config.json."""

    vocab_size: int = 21128
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02


class Layer(nn.Module):
    """One post-norm transformer block."""

    def __init__(self, shape: Shape):
        super().__init__()
        hidden = shape.hidden_size
        self.heads = shape.num_attention_heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=shape.layer_norm_eps)
        self.intermediate = nn.Linear(hidden, shape.intermediate_size)
        self.output = nn.Linear(shape.intermediate_size, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=shape.layer_norm_eps)

    def forward(self, x, bias, dropout: float):
        batch, tokens, hidden = x.shape

        def split(y):
            return y.view(batch, tokens, self.heads, hidden // self.heads).transpose(1, 2)

        attended = F.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(x)), split(self.value(x)), attn_mask=bias
        )
        attended = self.attention_output(attended.transpose(1, 2).reshape(batch, tokens, hidden))
        x = self.attention_norm(x + F.dropout(attended, dropout, self.training))
        inner = self.output(F.gelu(self.intermediate(x)))
        return self.output_norm(x + F.dropout(inner, dropout, self.training))


class CompactBert(nn.Module):
    """Encoder and masked-language head; the decoder is tied to the word embeddings."""

    def __init__(self, shape: Shape, dropout: float = 0.0):
        super().__init__()
        self.shape = shape
        self.dropout = dropout
        self.words = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.positions = nn.Embedding(shape.max_position_embeddings, shape.hidden_size)
        self.types = nn.Embedding(shape.type_vocab_size, shape.hidden_size)
        self.norm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.head = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.head_norm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.head_bias = nn.Parameter(torch.zeros(shape.vocab_size))
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=shape.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def embed(self, input_ids):
        """Word embeddings before the position is added: [batch, tokens, hidden]."""
        return self.words(input_ids)

    def encode(self, input_ids, attention_mask=None, embedded=None):
        """Last hidden state [batch, tokens, hidden]; `attention_mask` None means that nothing is padding."""
        return self.states(input_ids, attention_mask, embedded)[-1]

    def states(self, input_ids, attention_mask=None, embedded=None):
        """What each layer gives, as `encode` does for the last one."""
        if embedded is None:
            embedded = self.embed(input_ids)
        x = embedded + self.positions.weight[: input_ids.shape[1]] + self.types.weight[0]
        x = F.dropout(self.norm(x), self.dropout, self.training)
        bias = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        states = []
        for layer in self.layers:
            x = layer(x, bias, self.dropout)
            states.append(x)
        return states

    def transform(self, rows):
        """The head before its decoder, on rows [n, hidden]."""
        return self.head_norm(F.gelu(self.head(rows)))

    def logits(self, rows, tokens=None):
        """Logits of rows [n, hidden] over the whole vocabulary, or over `tokens` alone."""
        table, bias = (self.words.weight, self.head_bias) if tokens is None else (self.words.weight[tokens], self.head_bias[tokens])
        return F.linear(self.transform(rows), table, bias)


def occurring(rows):
    """The token ids that occur in `rows`, ascending."""
    return torch.from_numpy(np.unique(np.concatenate(list(rows))).astype(np.int64))


def pool(hidden, attention_mask=None):
    """Mean over all tokens that are not padding: [batch, hidden]."""
    if attention_mask is None:
        return hidden.float().mean(1)
    weights = attention_mask[:, :, None].float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)


_TOP = {
    "words.weight": "bert.embeddings.word_embeddings.weight",
    "positions.weight": "bert.embeddings.position_embeddings.weight",
    "types.weight": "bert.embeddings.token_type_embeddings.weight",
    "norm": "bert.embeddings.LayerNorm",
    "head": "cls.predictions.transform.dense",
    "head_norm": "cls.predictions.transform.LayerNorm",
    "head_bias": "cls.predictions.bias",
}
_IN_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def published_name(name: str) -> str:
    """Our parameter name -> the name in a published BertForMaskedLM checkpoint."""
    if name in _TOP:
        return _TOP[name]
    if name.startswith("layers."):
        _, index, part, leaf = name.split(".")
        return f"bert.encoder.layer.{index}.{_IN_LAYER[part]}.{leaf}"
    part, leaf = name.split(".")
    return f"{_TOP[part]}.{leaf}"


def read_shape(folder: Path) -> Shape:
    config = json.loads((folder / "config.json").read_text())
    return Shape(**{key: config[key] for key in asdict(Shape()) if key in config})


def load(folder: Path, dropout: float = 0.0) -> CompactBert:
    """Read a folder with config.json and model.safetensors (fp16 or fp32)."""
    model = CompactBert(read_shape(folder), dropout)
    stored = load_file(folder / "model.safetensors")
    model.load_state_dict({name: stored[published_name(name)].float() for name in model.state_dict()})
    return model


def averaged(models) -> CompactBert:
    """The first of `models`, with the mean of the weights of all."""
    with torch.no_grad():
        for target, *others in zip(*(model.parameters() for model in models), strict=True):
            target.copy_(torch.stack([target, *others]).mean(0))
    return models[0]


def save(model: CompactBert, folder: Path, dtype=torch.float32) -> None:
    """Write config.json and model.safetensors in the published layout."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {published_name(k): v.detach().to(dtype).contiguous() for k, v in model.state_dict().items()}
    partial = folder / "model.safetensors.partial"
    save_file(state, partial, metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")
    config = {
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "model_type": "bert",
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "use_cache": True,
        **asdict(model.shape),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
