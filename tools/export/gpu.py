"""What a fused graph needs on an NVIDIA GPU: lengths instead of a mask, and a second graph that computes no padding.

Owns the rewriting of graphs. Both hold for texts padded at their end, as the worker and verify.py pad them. The second is not for the
padding alone, of which length-sorted batches have little: ONNX Runtime's attention over a padded batch is fast only for some lengths. On
an H100 with 330M it took 3 ms a text in the worker, whose batches have every length, where packed attention takes 0.5 ms of articles.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

from .errors import Refusal
from .quantize import MICROSOFT

LENGTHS, LAST_AXIS = "gpu/lengths", "gpu/last_axis"
# What is the same for a row whichever rows stand beside it: nothing else may come between the two ends of the packed part.
ROW_BY_ROW = {
    "PackedAttention", "MatMul", "SkipLayerNormalization", "LayerNormalization", "BiasGelu", "Gelu", "FastGelu", "Add", "Cast",
}  # fmt: skip


def count_tokens(model: onnx.ModelProto) -> None:
    """Gives every Attention the number of tokens of each text, int32 [batch], instead of the mask int32 [batch, tokens]; in place."""
    graph = model.graph
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    mask = only("attention mask", {node.input[3] for node in attentions})
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), LAST_AXIS))
    graph.node.append(helper.make_node("ReduceSum", [mask, LAST_AXIS], [LENGTHS], name=LENGTHS, keepdims=0))
    for node in attentions:
        node.input[3] = LENGTHS


def pack(model: onnx.ModelProto) -> None:
    """Takes the padding out after the embedding and puts it back after the last layer, in place; needs `count_tokens` before.

    Between the two a batch is [tokens of all texts, hidden]. ONNX Runtime has these operators for CUDA alone.
    """
    graph = model.graph
    embedding = only("EmbedLayerNormalization", [node for node in graph.node if node.op_type == "EmbedLayerNormalization"])
    last = only("input of GatherElements", {node.input[0] for node in graph.node if node.op_type == "GatherElements"})
    offsets, begins, longest = (f"gpu/{name}" for name in ("token_offset", "cumulative_length", "longest"))
    nodes = []
    for node in graph.node:
        if node.op_type == "Attention":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in ("num_heads", "scale")}
            inputs = [*node.input[:3], offsets, begins]
            nodes.append(helper.make_node("PackedAttention", inputs, node.output, name=node.name, domain=MICROSOFT, **attributes))
            continue
        nodes.append(node)
        if node is embedding:
            # The third output, of pre-LN models, is the sum before the norm; the second has never been asked for.
            for index in (index for index in (0, 2) if index < len(node.output)):
                packed, node.output[index] = node.output[index], f"{node.output[index]}/padded"
                others = [offsets, begins, longest] if index == 0 else [f"{name}/again" for name in (offsets, begins, longest)]
                nodes.append(helper.make_node("RemovePadding", [node.output[index], LENGTHS], [packed, *others], name=f"gpu/remove_{index}", domain=MICROSOFT))
        elif last in node.output:
            index = list(node.output).index(last)
            node.output[index] = f"{last}/packed"
            nodes.append(helper.make_node("RestorePadding", [node.output[index], offsets], [last], name="gpu/restore", domain=MICROSOFT))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    OnnxModel.graph_topological_sort(graph)
    check_rows_alone(graph)


def check_rows_alone(graph) -> None:
    """Refuses a graph in which anything between the two ends looks at more than its own row."""
    packed = set()
    for node in graph.node:
        if node.op_type == "RemovePadding":
            packed.add(node.output[0])
        elif node.op_type != "RestorePadding" and packed.intersection(node.input):
            if node.op_type not in ROW_BY_ROW:
                raise Refusal(f"the graph cannot be packed: {node.op_type} ({node.name}) looks beyond a token; export it in fp32")
            packed.update(node.output)


def only(what: str, found):
    """The one element of `found`."""
    if len(found) != 1:
        raise Refusal(f"the graph has {len(found)} of {what} instead of one; it is none that was fused for BERT")
    return next(iter(found))
