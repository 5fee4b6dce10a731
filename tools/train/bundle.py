"""The bundle's description: `bundle.toml` with the size and SHA-256 of what the worker loads.

Owns the file's form. Knows nothing of training or of the network.
"""

import hashlib
from pathlib import Path

LISTED = ("model.onnx", "tokenizer.json")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(folder: Path, name: str, source: str, revision: str, precision: str, shape: dict, verification: dict | None) -> None:
    """Describe the files of `folder`; `verification` holds measured differences, or is None where none were measured."""
    lines = [
        'contract = "tcbert-graph/1"',
        f'name = "{name}"',
        'architecture = "BertForMaskedLM"',
        f'source = "{source}"',
        f'revision = "{revision}"',
        'license = "Apache-2.0"',
        f'hidden_size = {shape["hidden_size"]}',
        f'max_tokens = {shape["max_position_embeddings"]}',
        f'vocabulary_size = {shape["vocab_size"]}',
        f'precision = "{precision}"',
    ]
    for file in LISTED:
        path = folder / file
        lines += ["", f'[files."{file}"]', f'sha256 = "{digest(path)}"', f"bytes = {path.stat().st_size}"]
    lines += ["", "[verification]", f'status = "{"verified" if verification else "unverified"}"']
    lines += [f"{key} = {value}" for key, value in (verification or {}).items()]
    (folder / "bundle.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
