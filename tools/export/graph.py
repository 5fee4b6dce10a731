"""The graph contract `tcbert-graph/1`: a checkpoint's network traced to ONNX, then fused for ONNX Runtime.

Owns the shape of the graph, what the worker may rely on. Knows nothing of precision (precision.py) or of bundles (bundle.py).

    input_ids, attention_mask  int64 [batch, tokens]    label_log_probs     float [batch, masks, label_tokens]
    mask_positions             int64 [batch, masks]     sentence_embedding  float [batch, hidden], mean over the mask, not normalised
    label_token_ids            int64 [label_tokens]
"""

import copy
import logging
import warnings
from pathlib import Path

import onnx
import torch
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import AttentionMaskFormat, FusionOptions
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import nn

from .quantize import MICROSOFT

CONTRACT = "tcbert-graph/1"
OPSET = 17
INPUTS = {
    "input_ids": {0: "batch", 1: "tokens"},
    "attention_mask": {0: "batch", 1: "tokens"},
    "mask_positions": {0: "batch", 1: "masks"},
    "label_token_ids": {0: "label_tokens"},
}
OUTPUTS = {"label_log_probs": {0: "batch", 1: "masks", 2: "label_tokens"}, "sentence_embedding": {0: "batch"}}


class PlainEmbeddings(nn.Module):
    """Megatron's embeddings with every summand in the shape of the words: the optimizer fuses the first layer only then."""

    def __init__(self, embeddings):
        super().__init__()
        self.words, self.positions, self.types = embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings

    def forward(self, input_ids, **_):
        zeros = torch.zeros_like(input_ids)
        positions = torch.arange(input_ids.shape[1]) + zeros
        return self.words(input_ids) + (self.types(zeros) + self.positions(positions))


class Contract(nn.Module):
    """What is traced: the head on the mask rows only, log-softmax over the whole vocabulary, then the label tokens of it."""

    def __init__(self, model):
        super().__init__()
        # BertForMaskedLM and MegatronBertForMaskedLM name their parts alike.
        self.encoder, self.head = copy.copy(model.bert), model.cls
        if model.config.model_type == "megatron-bert":
            self.encoder._modules = {**model.bert._modules, "embeddings": PlainEmbeddings(model.bert.embeddings)}

    def forward(self, input_ids, attention_mask, mask_positions, label_token_ids):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = hidden.gather(1, mask_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        label_log_probs = self.head(rows).log_softmax(-1).index_select(-1, label_token_ids)
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        sentence_embedding = (hidden * kept).sum(1) / kept.sum(1)
        return label_log_probs, sentence_embedding


def trace(model, path: Path) -> None:
    """Writes the plain fp32 graph of `model` to `path` (weights beside it where they are over 2 GB)."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    example = (ids, mask, torch.tensor([[2, 3], [1, 3]]), torch.tensor([1, 2, 3]))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's remarks on shapes that transformers checks in Python
        torch.onnx.export(
            Contract(model).eval(), example, str(path), dynamo=False, opset_version=OPSET, input_names=list(INPUTS),
            output_names=list(OUTPUTS), dynamic_axes={**INPUTS, **OUTPUTS}, do_constant_folding=True,
        )  # fmt: skip


def fuse(path: Path, config):
    """ONNX Runtime's transformers optimizer over a traced graph; returns its OnnxModel."""
    options = FusionOptions("bert")
    options.attention_mask_format = AttentionMaskFormat.AttentionMask
    logging.disable(logging.WARNING)  # the optimizer tells of patterns that it tried and did not find
    try:
        fused = optimizer.optimize_model(
            str(path), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size,
            optimization_options=options, opt_level=0, only_onnxruntime=False,
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    words_first(fused.model)
    if all(entry.domain != MICROSOFT for entry in fused.model.opset_import):
        fused.model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))  # ONNX Runtime does without, the standard does not
    return fused


def words_first(model: onnx.ModelProto) -> None:
    """Puts the words before the token types in the fused embedding, which the optimizer may have matched the other way round."""
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    for node in model.graph.node:
        if node.op_type == "EmbedLayerNormalization" and casts.get(node.input[1], node.input[1]) == "input_ids":
            types, ids, type_table, positions, word_table = node.input[:5]
            node.input[:5] = [ids, types, word_table, positions, type_table]


def unfused(path: Path) -> OnnxModel:
    """A traced graph as it is, as an OnnxModel."""
    return OnnxModel(onnx.load(str(path)))


def operators(model: onnx.ModelProto) -> dict:
    """How often each operator occurs, by name; tells what was fused."""
    counts = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
