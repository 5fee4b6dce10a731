#!/usr/bin/env python3
"""Proves bundles on this machine's NVIDIA GPU: the same answers as the CPU, documents/s at several token budgets, memory taken.

Owns the comparison and its limits; the work is done by the worker's own `tag` and `bench`. Needs Python 3.8 or newer, no package.
Says so and ends with exit code 1 where there is no GPU; exit code 0 means that every bundle held its limits.

    make gpu-check                                     the bundled model and random 330M, both in fp16
    python3 tools/gpu_check.py --bundle models/NAME    another one (may be given several times)
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BINARY = ROOT / "target" / "release" / "tcbert-worker"
RUNTIME = ROOT / ".deps" / "onnxruntime-gpu"
SENTENCES = ROOT / "tools" / "export" / "sentences.txt"
# An embedded store on the same machine is slower than such a GPU: documents are counted instead of written.
BENCH = ["bench", "--json", "--no-store", "--mixes", "titles,mixed,articles"]
# (lowest cosine, lowest share of documents with the CPU's label, largest difference of a probability); of clear documents only.
LIMITS = {"fp32": (0.9999, 1.0, 1e-3), "fp16": (0.9995, 0.995, 5e-2), "int8": (0.99, 0.98, 2e-1)}
CLEAR = 1.1  # the best label's probability over the second's
SAMPLE_SECONDS = 0.2


class Failed(Exception):
    """What the check ends with, in words."""


def main():
    parser = argparse.ArgumentParser(description="check bundles on an NVIDIA GPU")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a bundle's folder; may be given several times (without: only whether there is a GPU)")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or tensorrt:N")
    parser.add_argument("--budgets", default="4096,16384,65536", help="token budgets of a batch, separated by commas")
    parser.add_argument("--runtime", type=Path, default=RUNTIME, help="folder of ONNX Runtime's GPU build")
    parser.add_argument("--rounds", type=int, default=3, help="alternations of pipeline and ceiling in each measurement")
    parser.add_argument("--run-seconds", type=int, default=4, help="rough length of a run of the pipeline")
    parser.add_argument("--sentences", type=int, default=1000, help="most sentences to compare with the CPU, which takes seconds for each with a large model")
    arguments = parser.parse_args()
    try:
        print(gpu())
        held = [check(bundle, arguments) for bundle in arguments.bundle]
    except Failed as failed:
        print("gpu_check: {}".format(failed), file=sys.stderr)
        return 1
    return 0 if all(held) else 1


def gpu():
    """Names the GPU, or fails in words that say that nothing was checked."""
    if not shutil.which("nvidia-smi"):
        raise Failed("there is no NVIDIA GPU here (nvidia-smi is missing): nothing was checked")
    done = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if done.returncode != 0 or not done.stdout.strip():
        raise Failed("nvidia-smi finds no GPU: nothing was checked. It said: {}".format(done.stdout.strip()))
    return done.stdout.strip()


def check(bundle, arguments):
    """Parity, then speed and memory; True when parity held."""
    precision = precision_of(bundle)
    print("\n{} ({})".format(bundle, precision))
    on_gpu = {"TCBERT__MODEL__DEVICE": arguments.device, "TCBERT__MODEL__RUNTIME_LIBRARY": str(arguments.runtime)}
    texts = "".join(SENTENCES.read_text(encoding="utf-8").splitlines(True)[: arguments.sentences])
    held = parity(tag(bundle, {}, texts), tag(bundle, on_gpu, texts), LIMITS[precision])
    print("  {:>8} {:>9} {:>12} {:>14} {:>7} {:>8} {:>10}".format("budget", "mix", "documents/s", "ceiling", "ratio", "padding", "GPU MiB"))
    for budget in (int(budget) for budget in arguments.budgets.split(",")):
        memory = Memory(arguments.device)
        settings = dict(on_gpu, TCBERT__BATCH__TOKEN_BUDGET=str(budget), TCBERT__BATCH__MAX_ROWS=str(max(64, budget // 32)), TCBERT__BATCH__WINDOW_DOCUMENTS=str(max(1024, budget // 8)))
        with memory:
            report = json.loads(worker(bundle, settings, BENCH + ["--rounds", str(arguments.rounds), "--run-seconds", str(arguments.run_seconds)]))
        for mix, measured in report["mixes"].items():
            print("  {:>8} {:>9} {:>12.0f} {:>14.0f} {:>7.3f} {:>8.3f} {:>10}".format(
                budget, mix, measured["pipeline_documents_per_second"], measured["ceiling_documents_per_second"], measured["ratio"], measured["padding_efficiency"], memory.taken()))
    return held


def precision_of(bundle):
    try:
        manifest = (bundle / "bundle.toml").read_text(encoding="utf-8")
    except OSError as error:
        raise Failed("{} is no bundle: {}".format(bundle, error))
    found = re.search(r'^precision = "(fp32|fp16|int8)"', manifest, re.MULTILINE)
    if not found:
        raise Failed("{}/bundle.toml names no precision".format(bundle))
    return found.group(1)


def tag(bundle, settings, texts):
    return [json.loads(line) for line in worker(bundle, settings, ["tag", "--json", "--embedding", "--top", "0"], texts).splitlines()]


def worker(bundle, settings, arguments, texts=""):
    if not BINARY.exists():
        raise Failed("{} is missing: run `make build` first".format(BINARY))
    environment = dict(os.environ, TCBERT__MODEL__BUNDLE=str(bundle), **settings)
    done = subprocess.run([str(BINARY)] + arguments, input=texts, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, cwd=str(ROOT), env=environment)
    if done.returncode != 0:
        raise Failed("tcbert-worker {} failed on {}:\n{}".format(arguments[0], settings.get("TCBERT__MODEL__DEVICE", "cpu"), done.stderr.strip()))
    return done.stdout


def parity(wanted, got, limits):
    """Compares the answers of the same bundle on both devices and prints the differences."""
    cosine, same, clear, difference = 1.0, 0, 0, 0.0
    for want, have in zip(wanted, got):
        cosine = min(cosine, sum(a * b for a, b in zip(want["embedding"], have["embedding"])) / (norm(want) * norm(have)))
        other = {topic["label"]: topic["probability"] for topic in have["topics"]}
        difference = max([difference] + [abs(topic["probability"] - other[topic["label"]]) for topic in want["topics"]])
        if want["topics"][0]["probability"] > CLEAR * want["topics"][1]["probability"]:
            clear += 1
            same += want["topics"][0]["label"] == have["topics"][0]["label"]
    share = same / clear if clear else 1.0
    held = len(wanted) == len(got) and cosine >= limits[0] and share >= limits[1] and difference <= limits[2]
    print("  parity with the CPU: cosine >= {:.6f}, same label on {:.2%} of {} clear documents, |dp| <= {:.1e}: {}".format(cosine, share, clear, difference, "held" if held else "MISSED"))
    return held


def norm(answer):
    return math.sqrt(sum(value * value for value in answer["embedding"]))


class Memory:
    """The most GPU memory in use while the block runs, beyond what was in use before it."""

    def __init__(self, device):
        self.number = device.partition(":")[2] or "0"
        self.before, self.most, self.stop = self.used(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def used(self):
        done = subprocess.run(["nvidia-smi", "-i", self.number, "--query-gpu=memory.used", "--format=csv,noheader,nounits"], stdout=subprocess.PIPE, universal_newlines=True)
        return int(done.stdout.split()[0]) if done.returncode == 0 and done.stdout.split() else 0

    def watch(self):
        while not self.stop.is_set():
            self.most = max(self.most, self.used())
            time.sleep(SAMPLE_SECONDS)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def taken(self):
        return max(0, self.most - self.before)


if __name__ == "__main__":
    sys.exit(main())
