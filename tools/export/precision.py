"""Lowers the precision of a fused graph and writes it. Inputs and outputs keep the types of the contract.

fp32 as it is; fp16 for GPUs, with fp32 where sixteen bits lose too much (norms, softmax over the vocabulary, pooling); int8 for CPUs.
"""

from pathlib import Path

import onnx

from . import quantize

EXTERNAL_BYTES = 1_900_000_000  # a protobuf file ends at 2 GiB
# Attention's own softmax runs in fp32 inside the fused kernel. The log-softmax covers 21,128 words; a mean over 512 tokens adds many small numbers.
FP32_OPERATORS = [
    "LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization", "Softmax", "LogSoftmax", "ReduceSum", "Div",
]  # fmt: skip


def write(fused, precision: str, target: Path) -> None:
    """Writes the OnnxModel `fused` to `target`, with model.onnx.data beside it where it is too large for one file."""
    if precision == "fp16":
        fused.convert_float_to_float16(keep_io_types=True, op_block_list=FP32_OPERATORS)
    elif precision == "int8":
        quantize.rewrite(fused.model)
    fused.model.producer_name, fused.model.producer_version = "tcbert-worker", ""
    fused.model.doc_string = ""
    fused.topological_sort()
    large = sum(len(tensor.raw_data) for tensor in fused.model.graph.initializer) > EXTERNAL_BYTES
    data = f"{target.name}.data" if large else None
    onnx.save(fused.model, str(target), save_as_external_data=large, all_tensors_to_one_file=True, location=data)
