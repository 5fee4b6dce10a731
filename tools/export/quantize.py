"""int8 for CPUs: activations dynamic and per token (QUInt8), weights per output channel (QInt8), the embedding table per word.

Owns the rewriting of a fused graph. onnxruntime.quantization is not used, for what was measured against it: it gives the embedding one
scale for the whole table, and its activation scales span the batch, so that a document's answer depends on its neighbours. A scale for
each token costs 6 to 8 % of the speed and ends that.

The weights of products stay within 64: on processors without VNNI the sum of two products of a uint8 and an int8 is kept in 16 bits and
saturates beyond (2 x 255 x 64 still fits). With the whole of int8 such a processor gave other answers than the one that verified the bundle.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
SMALLEST = np.float32(1e-9)
WIDEST, WIDEST_FACTOR = 127, 64  # of a value that is looked up, of a value that is multiplied
GELUS = ("BiasGelu", "Gelu", "FastGelu")
GELU_DEPTH = np.float32(0.1701)  # no GELU is below it, so that its largest magnitude needs no pass over the magnitudes
MIDDLE = np.uint8(128)  # symmetric around this zero point, as one zero point for all rows lets ONNX Runtime use its fast kernel


def rewrite(model: onnx.ModelProto) -> None:
    """Replaces every matrix product with a constant and the embedding lookup by integer ones, in place."""
    Rewriter(model).run()


class Rewriter:
    def __init__(self, model: onnx.ModelProto):
        self.graph = model.graph
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes, self.added = [], {}
        self.rows, self.of_rows = {}, {}  # by activation: its quantised rows and their scales; see `once`
        self.leading = "input_ids"  # whose shape [batch, tokens] the rows have, until the head takes those of the masks
        self.gelus = {node.output[0] for node in model.graph.node if node.op_type in GELUS}

    def run(self) -> None:
        for node in self.graph.node:
            if node.op_type == "MatMul" and node.input[1] in self.weights:
                self.matmul(node.input[0], self.array(node.input[1]), node.output[0])
            elif node.op_type == "Attention":
                self.attention(node)
            elif node.op_type == "EmbedLayerNormalization":
                self.embedding(node)
            elif node.op_type == "BiasGelu":
                self.gelu(node)
            else:
                if node.op_type == "GatherElements":
                    self.leading = "mask_positions"
                self.nodes.append(node)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept + list(self.added.values()))

    def matmul(self, source: str, weight: np.ndarray, target: str) -> None:
        """target = source @ weight: integers over rows, then the channels' scales, then the rows'."""
        values, scales = per_channel(weight, axis=0, widest=WIDEST_FACTOR)
        rows, row_scales = self.quantised_rows(source, weight.shape[0])
        one, middle, zeros = self.shared("one", np.float32(1)), self.shared("middle", MIDDLE), np.zeros(values.shape[1], np.int8)
        product = self.node(
            "MatMulIntegerToFloat",
            [rows, self.constant("weight", values), one, self.constant("scale", scales.reshape(-1)), middle, self.constant("zero", zeros)],
            domain=MICROSOFT,
        )
        self.node("Reshape", [self.node("Mul", [product, row_scales]), self.product_shape(values.shape[1])], output=target)

    def quantised_rows(self, source: str, width: int):
        """`source` as uint8 [rows, width], and the rows' scales [rows, 1]."""
        if source not in self.rows:
            flat = self.node("Reshape", [source, self.shared(f"rows_of_{width}", np.array([-1, width]))])
            magnitudes, least = flat, self.shared("gelu_depth", GELU_DEPTH)
            if source not in self.gelus:
                magnitudes, least = self.node("Abs", [flat]), self.shared("smallest", SMALLEST)
            largest = self.node("Max", [self.node("ReduceMax", [magnitudes], axes=[-1], keepdims=1), least])
            scales = self.node("Mul", [largest, self.shared("step", np.float32(1 / 127))])
            scale = self.node("Reshape", [scales, self.shared("flat", np.array([-1]))])
            self.rows[source] = self.node("QuantizeLinear", [flat, scale, self.zero_points()], axis=0), scales
        return self.rows[source]

    def product_shape(self, width: int) -> str:
        """[batch, tokens, width], or [batch, masks, width] in the head."""
        return self.once("shape", width, lambda: self.node(
            "Concat", [self.node("Shape", [self.leading]), self.shared(f"width_{width}", np.array([width]))], axis=0
        ))  # fmt: skip

    def zero_points(self) -> str:
        """The same zero point for every row."""
        return self.once("zeros", 1, lambda: self.node("Expand", [self.shared("middle", MIDDLE), self.node(
            "Shape", [self.node("Reshape", [self.leading, self.shared("flat", np.array([-1]))])]
        )]))  # fmt: skip

    def once(self, kind: str, width: int, make) -> str:
        """What depends on the number of rows alone is computed once for all products."""
        key = kind, width, self.leading
        if key not in self.of_rows:
            self.of_rows[key] = make()
        return self.of_rows[key]

    def attention(self, node) -> None:
        """The three projections in integers, the attention itself in fp32."""
        source, weight, bias, mask = node.input[:4]
        parts = [f"{node.name}/{name}" for name in ("query", "key", "value")]
        for name, part in zip(parts, np.split(self.array(weight), 3, axis=1)):
            self.matmul(source, part, name)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in ("num_heads", "mask_filter_value", "scale")}
        inputs = [*parts, bias, mask]
        self.nodes.append(helper.make_node("MultiHeadAttention", inputs, [node.output[0]], name=node.name, domain=MICROSOFT, **attributes))

    def gelu(self, node) -> None:
        """By tanh: off by 5e-4 at most, where the integers that it becomes are 2e-2 apart, and a fifth faster."""
        self.nodes.append(helper.make_node("FastGelu", list(node.input), list(node.output), name=node.name, domain=MICROSOFT))

    def embedding(self, node) -> None:
        """A row of int8 and a scale for each word; the other tables are small and stay."""
        ids, _, words, positions, types, gamma, beta = node.input[:7]
        values, scales = per_channel(self.array(words), axis=1)
        rows = self.node("Cast", [self.node("Gather", [self.constant("words", values), ids])], to=TensorProto.FLOAT)
        word = self.node("Mul", [rows, self.node("Gather", [self.constant("scale", scales), ids])])
        # Token types are all zero and positions count from zero: their sum is the first rows of one table.
        first, second = self.shared("first", np.array([0])), self.shared("second", np.array([1]))
        length = self.node("Gather", [self.node("Shape", [ids]), second])
        table = self.constant("positions", (self.array(positions) + self.array(types)[:1])[None])
        place = self.node("Slice", [table, first, length, second])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-12)
        # EmbedLayerNormalization's third output, the sum before the norm, is the fourth here.
        outputs = [node.output[0], "", "", node.output[2]] if len(node.output) > 2 else [node.output[0]]
        inputs = [word, place, gamma, beta]
        self.nodes.append(helper.make_node("SkipLayerNormalization", inputs, outputs, name=node.name, domain=MICROSOFT, epsilon=epsilon))

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.weights[name])

    def node(self, kind: str, inputs: list, output: str | None = None, **attributes) -> str:
        output = output or f"int8/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"int8/{kind}_{len(self.nodes)}", **attributes))
        return output

    def constant(self, hint: str, value: np.ndarray) -> str:
        return self.shared(f"{hint}_{len(self.added)}", value)

    def shared(self, name: str, value: np.ndarray) -> str:
        name = f"int8/{name}"
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def per_channel(weight: np.ndarray, axis: int, widest: int = WIDEST):
    """Symmetric integers with one scale for each slice along `axis`; returns (values, scales that broadcast)."""
    scales = (np.maximum(np.abs(weight).max(axis=axis, keepdims=True), SMALLEST) / widest).astype(np.float32)
    return np.clip(np.rint(weight / scales), -widest, widest).astype(np.int8), scales
