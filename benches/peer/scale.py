"""One, two and four of our workers in one group over twelve partitions: how throughput grows with workers on this machine.

    .venv-peer/bin/python benches/peer/scale.py [--json]

Each worker has one session of one thread, so that workers and cores can be counted against each other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack

from compare import BINARY, PATIENCE_SECONDS, ROOT, Broker, ending, free_port, steady, written

WORKERS = (1, 2, 4)
PARTITIONS = 12
POLL_SECONDS = 0.05


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--mix", choices=("titles", "articles", "mixed"), default="titles")
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rates = {}
    with Broker(PARTITIONS) as broker:
        broker.fill("documents", arguments.mix, arguments.documents)
        for count in WORKERS:
            rates[count] = run(broker.servers, count, arguments.documents)
            print(f"{count} workers: {rates[count]:.0f} documents/s", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"cores": os.cpu_count(), "documents_per_second": rates}))


def run(servers, count, documents):
    group = f"scale-{uuid.uuid4()}"
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            ports.append(free_port())
            settings = {
                "KAFKA__BROKERS": servers, "KAFKA__TOPIC": "documents", "KAFKA__GROUP_ID": group, "STORE__KIND": "embedded",
                "STORE__PATH": f"{folder}/store", "ADMIN__LISTEN": f"127.0.0.1:{ports[-1]}", "LOG__LEVEL": "error",
                "MODEL__SESSIONS": "1", "MODEL__THREADS": "1",
            }  # fmt: skip
            environment = {**os.environ, **{f"TCBERT__{key}": value for key, value in settings.items()}}
            stack.enter_context(ending(subprocess.Popen([BINARY, "run"], env=environment, cwd=ROOT)))
        moments, deadline = [], time.monotonic() + PATIENCE_SECONDS
        while not moments or moments[-1][1] < documents:
            if time.monotonic() > deadline:
                sys.exit(f"{count} workers stopped at {moments[-1][1]} of {documents} documents")
            # A document may be written twice around a rebalance; more than all of them is all of them.
            moments.append((time.monotonic(), min(documents, sum(written(port) for port in ports))))
            time.sleep(POLL_SECONDS)
        return steady(moments, documents)


if __name__ == "__main__":
    main()
