"""Lowers the precision of a graph and writes it. Inputs and outputs keep the types of the contract.

fp32 as it is; fp16 for GPUs, with fp32 where sixteen bits lose too much (softmax over the vocabulary, pooling); int8 for CPUs.
"""

from pathlib import Path

import onnx

from . import gpu, quantize

# ONNX Runtime maps weights that lie beside the graph, where it copies those within it through the heap: with the 330M, 0.3 to 0.5 GB
# less at the peak. A protobuf file ends at 2 GiB anyway.
EXTERNAL_BYTES = 128_000_000
# The log-softmax covers 21,128 words; a mean over 512 tokens adds many small numbers. Norms take and give sixteen bits and compute in fp32
# (the worker asks CUDA for that), as attention's own softmax does within its kernel: to cast around them took a quarter of a pass.
FP32_OPERATORS = ["Softmax", "LogSoftmax", "ReduceSum", "Div"]
PACKED = "model.packed.onnx"


def write(model, precision: str, target: Path, provider: str = "cuda") -> None:
    """Writes the OnnxModel `model` to `target`, with model.onnx.data beside it where it is too large for one file.

    In fp16 a second graph without padding over the same weights goes beside it for CUDA; for TensorRT `model` is to be unfused.
    """
    for_cuda = precision == "fp16" and provider == "cuda"
    if for_cuda:
        gpu.count_tokens(model.model)
    if precision == "fp16":
        # What leaves the log-softmax stays as exact as it is.
        last = [node.name for node in model.model.graph.node if node.op_type == "Gather" and "label_token_ids" in node.input]
        model.convert_float_to_float16(keep_io_types=True, op_block_list=FP32_OPERATORS, node_block_list=last)
    elif precision == "int8":
        quantize.rewrite(model.model)
    model.model.producer_name, model.model.producer_version = "tcbert-worker", ""
    model.model.doc_string = ""
    model.topological_sort()
    large = sum(len(tensor.raw_data) for tensor in model.model.graph.initializer) > EXTERNAL_BYTES
    save(model.model, target, external=large or for_cuda)
    if for_cuda:
        packed = onnx.load(str(target), load_external_data=False)
        gpu.pack(packed)
        onnx.save(packed, str(target.with_name(PACKED)))


def save(model: onnx.ModelProto, target: Path, external: bool) -> None:
    """Writes `model`, its weights beside it if `external`; both files may be read by whoever may read the first."""
    data = target.with_name(f"{target.name}.data")
    data.unlink(missing_ok=True)  # onnx appends to what is there
    onnx.save(model, str(target), save_as_external_data=external, all_tensors_to_one_file=True, location=data.name)
    if external:
        data.chmod(target.stat().st_mode & 0o777)
