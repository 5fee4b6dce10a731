"""Turns a bundle's graph back into the plain masked-language model that others export: every position's logits, nothing gathered.

Owns the surgery on the graph. The weights, their precision and the fused operators stay as they are, so that what is compared is
the worker around the model.
"""

import onnx
from onnx import TensorProto, helper


def plain(source, target):
    """Writes input_ids, attention_mask -> logits [batch, tokens, vocabulary], last_hidden_state [batch, tokens, hidden]."""
    model = onnx.load(source)
    graph = model.graph
    gather = only(graph, "GatherElements")
    hidden_state, rows = gather.input[0], gather.output[0]
    # The head reads every position now: the shape of its rows is that of the tokens.
    instead = {rows: hidden_state, "mask_positions": "input_ids"}
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
    logits = only(graph, "LogSoftmax").input[0]
    hidden = graph.output[1].type.tensor_type.shape.dim[1].dim_value
    outputs = {logits: ["batch", "tokens", None], hidden_state: ["batch", "tokens", hidden]}
    keep(graph, set(outputs))
    inputs = [value for value in graph.input if value.name in ("input_ids", "attention_mask")]
    del graph.input[:], graph.output[:]
    graph.input.extend(inputs)
    for (name, dims), wanted in zip(outputs.items(), ("logits", "last_hidden_state"), strict=True):
        if name != wanted:
            graph.node.append(helper.make_node("Identity", [name], [wanted]))
        graph.output.append(helper.make_tensor_value_info(wanted, TensorProto.FLOAT, dims))
    onnx.save(model, target)


def only(graph, kind):
    found = [node for node in graph.node if node.op_type == kind]
    if len(found) != 1:
        raise SystemExit(f"the graph has {len(found)} nodes {kind} instead of one: not a graph of this contract")
    return found[0]


def keep(graph, wanted):
    """Drops the nodes and weights that `wanted` does not need."""
    needed, kept = set(wanted), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(weights)
