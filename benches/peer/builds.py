"""Two builds of the worker over the same documents, in turn: whether a change costs throughput or processor time.

    python3 benches/peer/builds.py --old OTHER/tcbert-worker [--new target/release/tcbert-worker] [--rounds 11] [--json]

Each round runs old and new once, in alternating order, as `run` against one broker with an embedded store of its own, and once as
`bench --model none`. The figures are the medians of the rounds' ratios new / old. Neither build knows that it is compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from compare import BINARY, PATIENCE_SECONDS, POLL_SECONDS, ROOT, Broker, ending, free_port, steady, written


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, default=BINARY)
    parser.add_argument("--mix", choices=("titles", "articles", "mixed"), default="titles")
    parser.add_argument("--documents", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--no-model-runs", type=int, default=1, help="runs without a model of each build a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    builds = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    rounds = []
    with Broker() as broker:
        broker.fill("documents", arguments.mix, arguments.documents)
        for number in range(arguments.rounds):
            order = ("old", "new") if number % 2 == 0 else ("new", "old")
            result = {}
            for which in order:
                result[which] = run(builds[which], broker.servers, arguments.documents)
            for which in order * arguments.no_model_runs:
                result[which].setdefault("without_model", []).append(without_model(builds[which]))
            rounds.append(result)
            print(f"round {number + 1}: {json.dumps(result)}", file=sys.stderr, flush=True)
    report(arguments, rounds)


def run(binary, servers, documents):
    """One run from an empty store to the last document: rate once under way, and processor seconds of the whole process."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "KAFKA__BROKERS": servers, "KAFKA__TOPIC": "documents", "KAFKA__GROUP_ID": f"builds-{uuid.uuid4()}",
            "MODEL__BUNDLE": str(ROOT / "models" / "compact"), "TAGGING__TAXONOMY": "news", "STORE__KIND": "embedded",
            "STORE__PATH": f"{folder}/store", "ADMIN__LISTEN": f"127.0.0.1:{port}", "LOG__LEVEL": "error",
        }  # fmt: skip
        environment = {**os.environ, **{f"TCBERT__{key}": value for key, value in settings.items()}}
        process = subprocess.Popen([binary, "run"], env=environment, cwd=ROOT)
        with ending(process):
            moments, deadline = [(time.monotonic(), 0)], time.monotonic() + PATIENCE_SECONDS
            while moments[-1][1] < documents:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{binary} stopped at {moments[-1][1]} of {documents} documents")
                done = written(port)
                if done > moments[-1][1]:
                    moments.append((time.monotonic(), done))
                time.sleep(POLL_SECONDS)
            cpu = cpu_seconds(process.pid)
    return {"rate": steady(moments, documents), "cpu_seconds": cpu}


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def without_model(binary):
    # The mixes are of no interest here and take ten times as long.
    command = [binary, "bench", "--model", "none", "--mixes", "titles", "--rounds", "1", "--run-seconds", "1", "--json"]
    answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(answer.stdout)["without_model_documents_per_second"]


def report(arguments, rounds):
    def ratios(of):
        return [of(each["new"]) / of(each["old"]) for each in rounds]

    result = {
        "mix": arguments.mix, "documents": arguments.documents, "rounds": len(rounds),
        "rate": summary(ratios(lambda ran: ran["rate"])),
        "cpu_time": summary([1 / ratio for ratio in ratios(lambda ran: ran["cpu_seconds"])]),
    }  # fmt: skip
    if arguments.no_model_runs:
        result["without_model"] = summary(ratios(lambda ran: statistics.median(ran["without_model"])))
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"new / old over {len(rounds)} rounds of {arguments.documents} documents ({arguments.mix}); above 1 the new build is better")
    for name in ("rate", "cpu_time", "without_model"):
        if name in result:
            print(f"  {name:14} median {result[name]['median']:.3f}   from {result[name]['lowest']:.3f} to {result[name]['highest']:.3f}")


def summary(ratios):
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


if __name__ == "__main__":
    main()
