"""int8 against fp32 of one shape in ONNX Runtime alone, in turn: the same batches, the same threads.

    make bench-precision ARGS='--shape 330m --rounds 5 --json'

Owns the order of the runs. The batches are of one length, so that nothing but the precision differs.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("fp32", "int8")
MASKS, LABELS, VOCABULARY = 2, 36, 21128


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=("110m", "330m"), default="330m")
    parser.add_argument("--batch", type=int, default=16, help="documents of a batch")
    parser.add_argument("--tokens", type=int, default=40, help="tokens of a document")
    parser.add_argument("--sessions", type=int, default=1, help="passes at once, each in a session of its own, as model.sessions says")
    parser.add_argument("--threads", type=int, help="of a session (default: the cores divided among them)")
    parser.add_argument("--passes", type=int, default=8, help="batches of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.threads = arguments.threads or max(1, os.cpu_count() // arguments.sessions)
    rates = {each: [] for each in PRECISIONS}
    # A process each: the threads of two sessions in one get into each other's way, whichever runs.
    context = multiprocessing.get_context("spawn")
    for _ in range(arguments.rounds):
        for each in PRECISIONS:
            with concurrent.futures.ProcessPoolExecutor(1, context) as process:
                rates[each].append(process.submit(measure, each, arguments).result())
    report(arguments, rates)


def measure(precision, arguments):
    """Documents a second of one precision, after four batches to warm up: the memory of the first two is new."""
    path = ROOT / f"models/bench-{arguments.shape}-{precision}" / "model.onnx"
    models = [session(path, arguments.threads) for _ in range(arguments.sessions)]
    batch = inputs(arguments.batch, arguments.tokens)
    rate(models, batch, 4)
    return rate(models, batch, arguments.passes)


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # As in the worker.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def inputs(batch, tokens):
    random = np.random.default_rng(1)
    return {
        "input_ids": random.integers(700, VOCABULARY, (batch, tokens)),
        "attention_mask": np.ones((batch, tokens), np.int64),
        "mask_positions": np.tile(np.arange(5, 5 + MASKS), (batch, 1)),
        "label_token_ids": random.integers(700, VOCABULARY, LABELS),
    }


def rate(sessions, batch, passes):
    """Documents a second over some batches in every session at once."""

    def run(session):
        for _ in range(passes):
            session.run(None, batch)

    with concurrent.futures.ThreadPoolExecutor(len(sessions)) as pool:
        started = time.perf_counter()
        list(pool.map(run, sessions))
        return len(sessions) * passes * len(batch["input_ids"]) / (time.perf_counter() - started)


def report(arguments, rates):
    ratios = [int8 / fp32 for int8, fp32 in zip(rates["int8"], rates["fp32"], strict=True)]
    result = {
        "shape": arguments.shape, "batch": arguments.batch, "tokens": arguments.tokens, "sessions": arguments.sessions, "threads": arguments.threads,
        **{f"{each}_documents_per_second": statistics.median(found) for each, found in rates.items()},
        "ratio": statistics.median(ratios),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{arguments.shape}, {arguments.batch} x {arguments.tokens} tokens, {arguments.sessions} sessions of {arguments.threads} threads, the medians of {arguments.rounds} alternations")
    for each in PRECISIONS:
        print(f"  {each}  {result[f'{each}_documents_per_second']:8.1f} documents/s")
    print(f"  int8 over fp32: {result['ratio']:.2f} times")


if __name__ == "__main__":
    main()
