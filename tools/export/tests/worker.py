"""Runs the worker's binary as a user would."""

import json
import os
import subprocess
from pathlib import Path

from .checkpoints import ROOT


def binary() -> Path:
    path = Path(os.environ.get("TCBERT_WORKER_BIN", ROOT / "target" / "release" / "tcbert-worker"))
    assert path.exists(), f"{path} is missing: run `make build` first, or set TCBERT_WORKER_BIN"
    return path


def run(bundle: Path, taxonomy: Path, texts: list) -> subprocess.CompletedProcess:
    """`tag` over texts from standard input, one a line."""
    assert not any("\n" in text for text in texts)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TCBERT__")}
    environment |= {"TCBERT__MODEL__BUNDLE": str(bundle), "TCBERT__TAGGING__TAXONOMY": str(taxonomy)}
    command = [str(binary()), "tag", "--json", "--embedding", "--top", "0"]
    lines = "".join(text + "\n" for text in texts)
    return subprocess.run(command, input=lines, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300, check=False)


def tag(bundle: Path, taxonomy: Path, texts: list) -> list:
    done = run(bundle, taxonomy, texts)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
