"""Our worker and its peer in Python over the same documents, in turn: the same broker, the same weights, the same cores.

    make bench-peer ARGS='--shape 330m --rounds 5 --json'

Owns the order of the runs and what is read from outside: how many documents are done at which moment, and the peak of each process's
memory, every page counted once. Neither worker knows that it is compared.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "target" / "release" / "tcbert-worker"
TAXONOMY = ROOT / "config" / "taxonomies" / "news.toml"
PARTITIONS = 24
# Where the counted part of a run begins and ends, in shares of its documents.
FROM, TO = 0.1, 0.95
PATIENCE_SECONDS = 600
FEWEST_DOCUMENTS = 128
POLL_SECONDS = 0.02


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--shape", choices=("compact", "110m", "330m"), default="compact")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--peer-precision", choices=("int8", "fp32"), help="of the peer's model (default: as ours)")
    parser.add_argument("--mix", choices=("titles", "articles", "mixed"), default="mixed")
    parser.add_argument("--documents", type=int, help="documents of a run (default: 4000, 320 for larger models)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.peer_precision = arguments.peer_precision or arguments.precision
    if arguments.shape == "compact" and "fp32" in (arguments.precision, arguments.peer_precision):
        parser.error("the compact model stands here in int8 alone: fp32 is for --shape 110m or 330m")
    bundle = bundle_of(arguments.shape, arguments.precision)
    peer_bundle = bundle_of(arguments.shape, arguments.peer_precision)
    documents = arguments.documents or (4000 if arguments.shape == "compact" else 320)
    if documents < FEWEST_DOCUMENTS:
        parser.error(f"--documents has to be {FEWEST_DOCUMENTS} at least: the peer's batches of 32 give no rate before")
    for needed in (BINARY, ROOT / bundle / "bundle.toml", ROOT / peer_bundle / "bundle.toml"):
        if not needed.is_file():
            sys.exit(f"{needed} is missing; start this through `make bench-peer`")
    # Only the peer's environment has what it imports.
    from plain import plain

    with tempfile.TemporaryDirectory() as scratch, Broker() as broker:
        model = Path(scratch) / "plain.onnx"
        plain(ROOT / peer_bundle / "model.onnx", model)
        broker.fill("documents", arguments.mix, documents)
        rounds = []
        for number in range(1, arguments.rounds + 1):
            ours = run_ours(broker.servers, bundle, documents)
            peer = run_peer(broker.servers, peer_bundle, model, documents)
            rounds.append((ours, peer))
            print(f"round {number}: ours {ours['rate']:.1f}, peer {peer['rate']:.1f} documents/s", file=sys.stderr)
    report(arguments, bundle, peer_bundle, rounds)


def bundle_of(shape, precision):
    return "models/compact" if shape == "compact" else f"models/bench-{shape}-{precision}"


class Broker:
    """The broker of the bench, a process of its own."""

    def __init__(self, partitions=PARTITIONS):
        self.partitions = partitions

    def __enter__(self):
        self.process = subprocess.Popen([BINARY, "bench", "--serve-broker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.servers = json.loads(self.process.stdout.readline())["brokers"]
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def fill(self, topic, mix, documents):
        wish = {"topic": topic, "partitions": self.partitions, "mix": mix, "documents": documents, "seed": 1, "per_second": None}
        self.process.stdin.write(json.dumps(wish) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "filled" not in answer:
            sys.exit(f"the broker could not be filled: {answer}")


def run_ours(servers, bundle, documents):
    """`tcbert-worker run` as anyone would start it; its metrics say how far it is."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "KAFKA__BROKERS": servers, "KAFKA__TOPIC": "documents", "KAFKA__GROUP_ID": f"ours-{uuid.uuid4()}", "MODEL__BUNDLE": str(ROOT / bundle),
            "TAGGING__TAXONOMY": "news", "STORE__KIND": "embedded", "STORE__PATH": f"{folder}/store", "ADMIN__LISTEN": f"127.0.0.1:{port}",
            "LOG__LEVEL": "error",
        }  # fmt: skip
        environment = {**os.environ, **{f"TCBERT__{key}": value for key, value in settings.items()}}
        process = subprocess.Popen([BINARY, "run"], env=environment, cwd=ROOT)
        with ending(process):
            moments, deadline = [], time.monotonic() + PATIENCE_SECONDS
            done, twice = 0, None
            while done < documents:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"our worker stopped at {done} of {documents} documents")
                done = written(port)
                if not moments or done > moments[-1][1]:
                    moments.append((time.monotonic(), done))
                if twice is None and done >= documents / 2:
                    twice = counted_again_mib(process.pid)
                time.sleep(POLL_SECONDS)
            return {"rate": steady(moments, documents), "memory_mib": peak_mib(process.pid) - (twice or 0.0)}


def run_peer(servers, bundle, model, documents):
    """The worker in Python; it says itself how far it is. Its points are built and dropped, which is to its advantage."""
    command = [sys.executable, ROOT / "benches" / "peer" / "worker.py", "--brokers", servers, "--topic", "documents"]
    command += ["--group", f"peer-{uuid.uuid4()}", "--model", model, "--tokenizer", ROOT / bundle / "tokenizer.json"]
    command += ["--taxonomy", TAXONOMY, "--documents", str(documents)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with ending(process):
        moments, memory, twice = [], [0.0], None
        watching = threading.Timer(PATIENCE_SECONDS, process.kill)
        watching.start()
        for line in process.stdout:
            said = json.loads(line)
            if "documents" in said:
                moments.append((said["at"], said["documents"]))
                memory.append(peak_mib(process.pid))
                if twice is None and said["documents"] >= documents / 2:
                    twice = counted_again_mib(process.pid)
        watching.cancel()
        if not moments or moments[-1][1] < documents:
            sys.exit(f"the peer stopped at {moments[-1][1] if moments else 0} of {documents} documents")
        return {"rate": steady(moments, documents), "memory_mib": max(memory) - (twice or 0.0)}


@contextlib.contextmanager
def ending(process):
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def written(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return 0
    lines = [line for line in text.splitlines() if line.startswith('tcbert_documents_total{outcome="written"}')]
    return int(float(lines[0].split()[-1])) if lines else 0


def steady(moments, documents):
    """Documents a second once the run is under way."""
    counted = [(at, done) for at, done in moments if FROM * documents <= done <= TO * documents]
    (begin, before), (end, after) = counted[0], counted[-1]
    return (after - before) / (end - begin) if end > begin else 0.0


def peak_mib(pid):
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def counted_again_mib(pid):
    """Resident pages that are mapped more than once, as the weights that two sessions of a process share: the peak counts each mapping."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if name in ("Rss", "Pss")}
    return (kib.get("Rss", 0) - kib.get("Pss", 0)) / 1024


def report(arguments, bundle, peer_bundle, rounds):
    model_mib, peer_model_mib = (sum(file.stat().st_size for file in (ROOT / each).glob("model.onnx*")) / 2**20 for each in (bundle, peer_bundle))

    def middle(which, key):
        return statistics.median(each[which][key] for each in rounds)

    result = {
        "model": bundle.rsplit("/", 1)[-1], "precision": arguments.precision,
        "peer_precision": arguments.peer_precision, "mix": arguments.mix,
        "documents_per_second": middle(0, "rate"), "peer_documents_per_second": middle(1, "rate"),
        "ratio": statistics.median(ours["rate"] / peer["rate"] for ours, peer in rounds),
        "peak_rss_mib": middle(0, "memory_mib"), "peer_peak_rss_mib": middle(1, "memory_mib"),
        "memory_ratio_beyond_the_model": (middle(0, "memory_mib") - model_mib) / (middle(1, "memory_mib") - peer_model_mib),
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['model']}, {result['precision']}, {result['mix']}: {result['ratio']:.2f} times the peer in {result['peer_precision']}")
    print(f"  documents/s  {result['documents_per_second']:8.1f}   peer {result['peer_documents_per_second']:8.1f}")
    print(f"  peak MiB     {result['peak_rss_mib']:8.0f}   peer {result['peer_peak_rss_mib']:8.0f}   model {model_mib:.0f}, {peer_model_mib:.0f}")
    print(f"  memory beyond the model: {result['memory_ratio_beyond_the_model']:.2f} of the peer's")


if __name__ == "__main__":
    main()
