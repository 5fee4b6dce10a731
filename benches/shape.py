"""Writes a bundle of the size of a real checkpoint with random weights: what it says is noise, what it costs is real.

    python benches/shape.py --shape 330m --precision int8 --out models/bench-330m-int8

Owns the sizes and the fused graph of BERT in the contract tcbert-graph/1. Needs onnx, ONNX Runtime and numpy, no PyTorch.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# The precisions and the files that `make model` writes are what has to be measured.
from tools.export.precision import write  # noqa: E402

# layers, hidden size, attention heads; the feed-forward part is four times as wide.
SHAPES = {"compact": (4, 256, 4), "110m": (12, 768, 12), "330m": (24, 1024, 16)}
VOCABULARY = 21128
MAX_TOKENS = 512
OPSET = 17
MICROSOFT = "com.microsoft"
COMPACT = ROOT / "models" / "compact"


class Graph:
    """Nodes and weights in the order in which they are added."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def weight(self, name, *shape, value=None):
        data = self.random.standard_normal(shape, np.float32) * np.float32(0.02) if value is None else np.full(shape, value, np.float32)
        self.weights.append(numpy_helper.from_array(data, name))
        return name

    def constant(self, name, values):
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def node(self, kind, inputs, output, domain="", **attributes):
        outputs = output if isinstance(output, list) else [output]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]


def norm(graph, name, hidden):
    return [graph.weight(f"{name}.gamma", hidden, value=1), graph.weight(f"{name}.beta", hidden, value=0)]


def layer(graph, name, hidden_state, mask, hidden, heads):
    """One encoder layer in the operators that ONNX Runtime fuses BERT into."""
    width = 4 * hidden
    qkv = [graph.weight(f"{name}.qkv.weight", hidden, 3 * hidden), graph.weight(f"{name}.qkv.bias", 3 * hidden, value=0)]
    attended = graph.node("Attention", [hidden_state, *qkv, mask], f"{name}.attention", MICROSOFT, num_heads=heads)
    projected = graph.node("MatMul", [attended, graph.weight(f"{name}.out.weight", hidden, hidden)], f"{name}.out")
    first = graph.node(
        "SkipLayerNormalization",
        [projected, hidden_state, *norm(graph, f"{name}.first", hidden), graph.weight(f"{name}.out.bias", hidden, value=0)],
        f"{name}.first", MICROSOFT, epsilon=1e-12,
    )  # fmt: skip
    widened = graph.node("MatMul", [first, graph.weight(f"{name}.up.weight", hidden, width)], f"{name}.up")
    bent = graph.node("BiasGelu", [widened, graph.weight(f"{name}.up.bias", width, value=0)], f"{name}.gelu", MICROSOFT)
    narrowed = graph.node("MatMul", [bent, graph.weight(f"{name}.down.weight", width, hidden)], f"{name}.down")
    return graph.node(
        "SkipLayerNormalization",
        [narrowed, first, *norm(graph, f"{name}.second", hidden), graph.weight(f"{name}.down.bias", hidden, value=0)],
        f"{name}.second", MICROSOFT, epsilon=1e-12,
    )  # fmt: skip


def encoder(graph, layers, hidden, heads):
    graph.node("Cast", ["input_ids"], "ids32", to=TensorProto.INT32)
    graph.node("Cast", ["attention_mask"], "mask32", to=TensorProto.INT32)
    graph.node("Sub", ["ids32", "ids32"], "types32")
    tables = [
        graph.weight("words", VOCABULARY, hidden), graph.weight("positions", MAX_TOKENS, hidden), graph.weight("types", 2, hidden),
    ]  # fmt: skip
    state = graph.node(
        "EmbedLayerNormalization", ["ids32", "types32", *tables, *norm(graph, "embeddings", hidden)],
        ["embedded", "embedded_mask"], MICROSOFT, epsilon=1e-12,
    )  # fmt: skip
    for index in range(layers):
        state = layer(graph, f"layer{index}", state, "mask32", hidden, heads)
    return state


def head(graph, state, hidden):
    """The masked-language head on the mask rows only, then the label tokens of the log softmax."""
    graph.node("Unsqueeze", ["mask_positions", graph.constant("last", [-1])], "positions3")
    graph.node("Expand", ["positions3", graph.constant("hidden_shape", [1, 1, hidden])], "row_index")
    graph.node("GatherElements", [state, "row_index"], "rows", axis=1)
    graph.node("MatMul", ["rows", graph.weight("head.weight", hidden, hidden)], "head.dense")
    graph.node("BiasGelu", ["head.dense", graph.weight("head.bias", hidden, value=0)], "head.gelu", MICROSOFT)
    graph.node("LayerNormalization", ["head.gelu", *norm(graph, "head", hidden)], "head.norm", axis=-1, epsilon=1e-12)
    graph.node("MatMul", ["head.norm", graph.weight("decoder.weight", hidden, VOCABULARY)], "decoder")
    graph.node("Add", ["decoder", graph.weight("decoder.bias", VOCABULARY, value=0)], "logits")
    graph.node("LogSoftmax", ["logits"], "log_probs", axis=-1)
    graph.node("Gather", ["log_probs", "label_token_ids"], "label_log_probs", axis=2)


def mean(graph, state):
    graph.node("Cast", ["attention_mask"], "mask_float", to=TensorProto.FLOAT)
    graph.node("Unsqueeze", ["mask_float", "last"], "kept")
    graph.node("Mul", [state, "kept"], "kept_state")
    axis = graph.constant("token_axis", [1])
    graph.node("ReduceSum", ["kept_state", axis], "sum", keepdims=0)
    graph.node("ReduceSum", ["kept", axis], "count", keepdims=0)
    graph.node("Div", ["sum", "count"], "sentence_embedding")


def build(shape, seed):
    layers, hidden, heads = SHAPES[shape]
    graph = Graph(seed)
    state = encoder(graph, layers, hidden, heads)
    head(graph, state, hidden)
    mean(graph, state)
    inputs = {"input_ids": ["batch", "tokens"], "attention_mask": ["batch", "tokens"], "mask_positions": ["batch", "masks"], "label_token_ids": ["label_tokens"]}
    outputs = {"label_log_probs": ["batch", "masks", "label_tokens"], "sentence_embedding": ["batch", hidden]}
    proto = helper.make_graph(
        graph.nodes, shape,
        [helper.make_tensor_value_info(name, TensorProto.INT64, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        graph.weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(proto, opset_imports=opsets, ir_version=8)


def manifest(shape, precision, folder):
    lines = [
        'contract = "tcbert-graph/1"', f'name = "bench-{shape}-{precision}"', 'architecture = "BertForMaskedLM"',
        'source = "random weights, benches/shape.py"', 'revision = "1"', 'license = "Apache-2.0"',
        f"hidden_size = {SHAPES[shape][1]}", f"max_tokens = {MAX_TOKENS}", f"vocabulary_size = {VOCABULARY}", f'precision = "{precision}"',
    ]  # fmt: skip
    for path in sorted(folder.glob("model.*")) + [folder / "tokenizer.json"]:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines += ["", f'[files."{path.name}"]', f'sha256 = "{digest}"', f"bytes = {path.stat().st_size}"]
    return "\n".join([*lines, "", "[verification]", 'status = "random"', ""])


def main():
    parser = argparse.ArgumentParser(description="write a bundle of random weights for measuring")
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="int8")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("model.*"):
        stale.unlink()
    shutil.copyfile(COMPACT / "tokenizer.json", folder / "tokenizer.json")
    write(OnnxModel(build(arguments.shape, arguments.seed)), arguments.precision, folder / "model.onnx")
    # The manifest last: a folder without one is not taken for a bundle.
    (folder / "bundle.toml").write_text(manifest(arguments.shape, arguments.precision, folder))
    print(folder, file=sys.stderr)


if __name__ == "__main__":
    main()
