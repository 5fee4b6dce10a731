"""int8 for CPUs: activations dynamic and per token (QUInt8), weights per output channel (QInt8), the embedding table per word.

Owns the rewriting of a fused graph. onnxruntime.quantization is not used, for what was measured against it: it gives the embedding one
scale for the whole table, and its activation scales span the batch, so that a document's answer depends on its neighbours. A scale for
each token costs 6 to 8 % of the speed and ends that.

Products have a multiple of 16 columns: ONNX Runtime 1.24 gives garbage in the last 8 of a product that has 8 more, such as the 21,128 words
of the head, on a processor with AMX and more threads than one. What is added to the head has a bias that no softmax sees.

The weights of products stay within 64: on processors without VNNI the sum of two products of a uint8 and an int8 is kept in 16 bits and
saturates beyond (2 x 255 x 64 still fits). With the whole of int8 such a processor gave other answers than the one that verified the bundle.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .errors import Refusal

MICROSOFT = "com.microsoft"
# The first with `Attention` as an operator of its own and scales for blocks of a row; everything else in the graph means the same in it.
OPSET, IR_VERSION = 23, 10
SMALLEST = np.float32(1e-9)
WIDEST = 64
COLUMNS = 16
UNSEEN = np.float32(-1e30)
GELUS = ("BiasGelu", "Gelu", "FastGelu")
GELU_DEPTH = np.float32(0.1701)  # no GELU is below it, so that its largest magnitude needs no pass over the magnitudes
MIDDLE = np.uint8(128)  # symmetric around this zero point, as one zero point for all rows lets ONNX Runtime use its fast kernel


def rewrite(model: onnx.ModelProto) -> None:
    """Replaces every matrix product with a constant and the embedding lookup by integer ones, in place."""
    Rewriter(model).run()
    next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")).version = OPSET
    model.ir_version = max(model.ir_version, IR_VERSION)


class Rewriter:
    def __init__(self, model: onnx.ModelProto):
        self.graph = model.graph
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes, self.added = [], {}
        self.flat, self.rows = {}, {}  # by activation: its rows [rows, width]; those quantised and their scales
        self.of_rows = {}  # see `once`
        self.table, self.words = None, None  # of words, once the embedding has been met; its integers and their scales
        self.padded = {}  # by the output of the head's product: how many columns were added
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
        self.pad_biases()
        self.nodes = living(self.nodes, [output.name for output in self.graph.output])
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept + list(self.added.values()))

    def matmul(self, source: str, weight: np.ndarray, target: str) -> None:
        """target = source @ weight: integers over rows, then the channels' scales, then the rows'."""
        width, is_head = weight.shape[1], self.table is not None and weight.shape[1] == len(self.table)
        product = self.product(source, weight, keep_padding=is_head)
        if is_head and width % COLUMNS:
            self.padded[target] = -width % COLUMNS
        self.unflatten(product, width + self.padded.get(target, 0), target)

    def product(self, source: str, weight: np.ndarray, bias: np.ndarray | None = None, keep_padding: bool = False) -> str:
        """source @ weight + bias: [rows, width], or with the columns that were added to the weight."""
        width, added = weight.shape[1], -weight.shape[1] % COLUMNS
        rows, row_scales = self.quantised_rows(source, weight.shape[0])
        one, middle, zeros = self.shared("one", np.float32(1)), self.shared("middle", MIDDLE), np.zeros(width + added, np.int8)
        values, scales = self.factor(weight)
        product = self.node("MatMulIntegerToFloat", [rows, values, one, scales, middle, self.constant("zero", zeros)], domain=MICROSOFT)
        scaled = self.node("Mul", [product, row_scales])
        if added and not keep_padding:
            first, last = self.shared("first", np.array([0])), self.shared(f"width_{width}", np.array([width]))
            scaled = self.node("Slice", [scaled, first, last, self.shared("second", np.array([1]))])
        return scaled if bias is None else self.node("Add", [scaled, self.constant("bias", bias)])

    def factor(self, weight: np.ndarray):
        """`weight` as integers and the scales of its columns. The head's is the table of words on its side, which stands in the file once."""
        if self.table is not None and np.array_equal(weight.T, self.table):
            values, scales = self.words
            # ONNX Runtime turns it round when it loads the graph.
            return self.node("Transpose", [values], perm=[1, 0]), self.node("Reshape", [scales, self.shared("all", np.array([-1]))])
        values, scales = per_channel(with_zeros(weight, axis=1), axis=0)
        return self.constant("weight", values), self.constant("scale", scales.reshape(-1))

    def flattened(self, source: str, width: int) -> str:
        """`source` as [rows, width]."""
        if source not in self.flat:
            self.flat[source] = self.node("Reshape", [source, self.shared(f"rows_of_{width}", np.array([-1, width]))])
        return self.flat[source]

    def unflatten(self, rows: str, width: int, target: str) -> None:
        """`target` [batch, tokens, width], or [batch, masks, width] in the head, is `rows` [rows, width]."""
        shape = self.once("shape", width, lambda: self.node(
            "Concat", [self.node("Shape", [self.leading]), self.shared(f"width_{width}", np.array([width]))], axis=0
        ))  # fmt: skip
        self.node("Reshape", [rows, shape], output=target)

    def quantised_rows(self, source: str, width: int):
        """`source` as uint8 [rows, width], and the rows' scales [rows, 1]: a row is one block, for these are quantised side by side."""
        if source not in self.rows:
            flat = self.flattened(source, width)
            magnitudes = [self.extreme("ReduceMax", flat), self.shared("gelu_depth", GELU_DEPTH)]
            if source not in self.gelus:
                # Two passes that write nothing cost less than one that writes magnitudes.
                magnitudes = [magnitudes[0], self.node("Neg", [self.extreme("ReduceMin", flat)]), self.shared("smallest", SMALLEST)]
            scales = self.node("Mul", [self.node("Max", magnitudes), self.shared("step", np.float32(1 / 127))])
            self.rows[source] = self.node("QuantizeLinear", [flat, scales, self.zero_points()], axis=1, block_size=width), scales
        return self.rows[source]

    def extreme(self, kind: str, rows: str) -> str:
        return self.node(kind, [rows, self.shared("last", np.array([-1]))], keepdims=1)

    def zero_points(self) -> str:
        """The same zero point for every row."""
        return self.once("zeros", 1, lambda: self.node("Expand", [self.shared("middle", MIDDLE), self.node(
            "Shape", [self.node("Reshape", [self.leading, self.shared("rows_of_1", np.array([-1, 1]))])]
        )]))  # fmt: skip

    def once(self, kind: str, width: int, make) -> str:
        """What depends on the number of rows alone is computed once for all products."""
        key = kind, width, self.leading
        if key not in self.of_rows:
            self.of_rows[key] = make()
        return self.of_rows[key]

    def attention(self, node) -> None:
        """The three projections in integers, the attention itself in fp32.

        The keys' bias is left out: it moves all scores of a query by the same amount, which the softmax does not see.
        """
        source, mask = node.input[0], node.input[3]
        weights, biases = (np.split(self.array(name), 3, axis=-1) for name in node.input[1:3])
        parts = [f"{node.name}/{name}" for name in ("query", "key", "value")]
        for part, weight, bias in zip(parts, weights, (biases[0], None, biases[2])):
            self.unflatten(self.product(source, weight, bias), weight.shape[1], part)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in ("num_heads", "scale")}
        heads = attributes.pop("num_heads")
        kept = self.once("kept", 1, lambda: self.kept_keys(mask))
        self.nodes.append(helper.make_node(
            "Attention", [*parts, kept], [node.output[0]], name=node.name, q_num_heads=heads, kv_num_heads=heads, **attributes
        ))  # fmt: skip

    def kept_keys(self, mask: str) -> str:
        """Which keys each query sees: [batch, 1, tokens, tokens]. ONNX Runtime 1.24 reads a mask that has yet to be broadcast over the queries wrongly."""
        each = self.node("Unsqueeze", [self.node("Cast", [mask], to=TensorProto.BOOL), self.shared("query_axes", np.array([1, 2]))])
        tokens = self.node("Gather", [self.node("Shape", [mask]), self.shared("second", np.array([1]))])
        one = self.shared("one_head", np.array([1]))
        return self.node("Expand", [each, self.node("Concat", [one, one, tokens, one], axis=0)])

    def gelu(self, node) -> None:
        """By tanh: off by 5e-4 at most, where the integers that it becomes are 2e-2 apart, and a fifth faster.

        The bias is added before, and a reshape keeps ONNX Runtime from fusing the two: apart they are faster by another eighth.
        """
        source, bias, target = *node.input[:2], node.output[0]
        width = self.array(bias).shape[0]
        rows = self.flattened(self.node("Add", [source, bias]), width)
        self.flat[target] = self.node("FastGelu", [rows], domain=MICROSOFT)
        self.unflatten(self.flat[target], width, target)

    def embedding(self, node) -> None:
        """A row of int8 and a scale for each word; the other tables are small and stay."""
        ids, _, words, positions, types, gamma, beta = node.input[:7]
        self.table = self.array(words)
        integers, of_words = per_channel(with_zeros(self.table, axis=0), axis=1)
        values, scales = self.words = self.shared("words", integers), self.shared("scales_of_words", of_words)
        rows = self.node("Cast", [self.node("Gather", [values, ids])], to=TensorProto.FLOAT)
        word = self.node("Mul", [rows, self.node("Gather", [scales, ids])])
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

    def pad_biases(self) -> None:
        """Gives the columns that the head's product has beyond the words a bias that leaves them out of the softmax."""
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name in self.padded:
                    biases = [other for other in node.input if other in self.weights]
                    if node.op_type != "Add" or len(biases) != 1:
                        raise Refusal(f"the head's product is read by {node.op_type}, not by the addition of its bias; export it in fp32")
                    bias = np.pad(self.array(biases[0]), (0, self.padded[name]), constant_values=UNSEEN)
                    node.input[1 - index] = self.constant("head_bias", bias)

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


def with_zeros(weight: np.ndarray, axis: int) -> np.ndarray:
    """`weight` with zeros up to a multiple of COLUMNS along `axis`."""
    widths = [(0, 0), (0, 0)]
    widths[axis] = (0, -weight.shape[axis] % COLUMNS)
    return np.pad(weight, widths)


def living(nodes: list, outputs: list) -> list:
    """The nodes that bear on `outputs`, in their order.

    ONNX Runtime runs a node that nobody reads last of all, and what it reads stays in memory until then: one such reshape a layer held
    every GELU of a pass, 280 MiB of the 330M at 768 tokens, and a pass took 3 to 9 % longer.
    """
    producers = {name: node for node in nodes for name in node.output if name}
    wanted, alive = list(outputs), set()
    while wanted:
        node = producers.get(wanted.pop())
        if node is not None and id(node) not in alive:
            alive.add(id(node))
            wanted += node.input
    return [node for node in nodes if id(node) in alive]


def per_channel(weight: np.ndarray, axis: int):
    """Symmetric integers with one scale for each slice along `axis`; returns (values, scales that broadcast)."""
    scales = (np.maximum(np.abs(weight).max(axis=axis, keepdims=True), SMALLEST) / WIDEST).astype(np.float32)
    return np.clip(np.rint(weight / scales), -WIDEST, WIDEST).astype(np.int8), scales
