"""Lowers the precision of a fused graph and writes it. Inputs and outputs keep the types of the contract.

fp32 as it is; fp16 for GPUs, with fp32 where sixteen bits lose too much (norms, softmax over the vocabulary, pooling); int8 for CPUs.
"""

from pathlib import Path

import onnx

from . import quantize

# ONNX Runtime maps weights that lie beside the graph, where it copies those within it through the heap: with the 330M, 0.3 to 0.5 GB
# less at the peak. A protobuf file ends at 2 GiB anyway.
EXTERNAL_BYTES = 128_000_000
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
    save(fused.model, target, external=large)


def save(model: onnx.ModelProto, target: Path, external: bool) -> None:
    """Writes `model`, its weights beside it if `external`; both files may be read by whoever may read the first."""
    data = target.with_name(f"{target.name}.data")
    data.unlink(missing_ok=True)  # onnx appends to what is there
    onnx.save(model, str(target), save_as_external_data=external, all_tensors_to_one_file=True, location=data.name)
    if external:
        data.chmod(target.stat().st_mode & 0o777)
