"""Command line: PYTHONPATH=tools python -m train STAGE [--data DIR] [--work DIR] [--scale S]

Stages, in order: pretrain, teach, tune, distil, settle, ngrams, bags, finish, sentences, quantise, evaluate. `all` runs every one, `smoke` does so on a
thousandth of the data in a temporary folder. Each stage reads what those before it left in the work folder, goes on where it was stopped, and
does nothing once it is done. Owns the order of the stages.
"""

import argparse
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

from .errors import Unavailable

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = ("pretrain", "teach", "tune", "distil", "settle", "ngrams", "bags", "finish", "sentences", "quantise", "evaluate")
log = logging.getLogger("train")


def arguments(argv):
    parser = argparse.ArgumentParser(prog="train", description="train the compact model, stage by stage")
    parser.add_argument("stage", choices=(*STAGES, "all", "smoke"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TCBERT_DATA", REPOSITORY.parent / "shared" / "data")))
    parser.add_argument("--vocab", type=Path, default=REPOSITORY / "models" / "compact" / "vocab.txt")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".cache" / "train", help="checkpoints (default: .cache/train)")
    parser.add_argument("--encoder", type=Path, default=REPOSITORY / ".cache" / "encoder", help="where the sentence encoder is kept (default: .cache/encoder)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "models" / "compact", help="the bundle of `quantise`")
    parser.add_argument("--start", type=Path, help="begin pre-training at this checkpoint instead of random weights")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the data and of the steps, for trials")
    parser.add_argument("--steps", type=int, help="steps of this stage instead of the recipe's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


def main(argv=None) -> int:
    options = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    warnings.filterwarnings("ignore")
    if not options.data.is_dir():
        print(f"train: no data at {options.data}: name the folder with --data or TCBERT_DATA", file=sys.stderr)
        return 2
    try:
        return start(options)
    except Unavailable as error:
        print(f"train: {error}", file=sys.stderr)
        return 2


def start(options) -> int:
    if options.stage == "smoke":
        with tempfile.TemporaryDirectory() as scratch:
            options.work, options.out, options.scale = Path(scratch) / "work", Path(scratch) / "bundle", 0.001
            run(options, STAGES)
        print("train smoke: every stage ran")
        return 0
    run(options, STAGES if options.stage == "all" else (options.stage,))
    return 0


def run(options, stages) -> None:
    # PyTorch takes seconds to load: --help and wrong usage need none of it.
    import torch

    from .stages import Stages

    torch.set_num_threads(options.threads)
    work = Stages(options)
    for stage in stages:
        log.info("stage %s", stage)
        getattr(work, stage)()


if __name__ == "__main__":
    sys.exit(main())
