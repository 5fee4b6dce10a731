"""The bundle folder: model.onnx, tokenizer.json and bundle.toml, written whole or not at all.

Owns the format of bundle.toml, which the worker reads. Knows nothing of how the graph was made.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

MANIFEST = "bundle.toml"


OWN_FILES = {MANIFEST, "model.onnx", "model.onnx.data", "model.packed.onnx", "tokenizer.json"}


@contextlib.contextmanager
def staged(target: Path):
    """A folder beside `target` that takes its place when the block ends without an error; files that are none of a bundle's stay."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir(mode=0o755)
        yield fresh
        for other in target.iterdir() if target.is_dir() else ():  # such as the checkpoint's weights and card beside its bundle
            if other.name not in OWN_FILES:
                (shutil.copytree if other.is_dir() else shutil.copy2)(other, fresh / other.name)
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, Path(scratch) / "old")
        os.rename(fresh, target)


def write_manifest(folder: Path, facts: dict, tables: dict) -> None:
    """Writes bundle.toml over every other file of the folder: `facts`, then the files, then each of `tables` by its name."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            files[path.name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    lines = [f"{key} = {value_text(value)}" for key, value in facts.items()]
    for name, entry in files.items():
        lines += ["", f"[files.{json.dumps(name)}]", *(f"{key} = {value_text(value)}" for key, value in entry.items())]
    for name, entries in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {value_text(value)}" for key, value in entries.items())]
    (folder / MANIFEST).write_text("\n".join(lines) + "\n", encoding="utf-8")


def value_text(value) -> str:
    """A TOML value: strings, booleans, integers, and floats that TOML can read."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)  # a JSON string is a TOML basic string


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        while chunk := source.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
