"""Command line: python -m tools.export --checkpoint CHECKPOINT --name NAME [--precision fp32|fp16|int8], from the repository's root."""

import argparse
import logging
import os
import sys
from pathlib import Path

from .errors import Refusal

MODELS = Path(__file__).resolve().parents[2] / "models"


def main() -> int:
    parser = argparse.ArgumentParser(prog="export", description="turn a TCBert checkpoint into a verified bundle for the worker")
    parser.add_argument("--checkpoint", required=True, help="a folder with config.json, vocab.txt and weights, or a model's name on the hub")
    parser.add_argument("--name", help="name of the bundle (default: the checkpoint's)")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32")
    parser.add_argument("--for", dest="provider", choices=("cuda", "tensorrt"), default="cuda", help="what runs an fp16 bundle on a GPU")
    parser.add_argument("--out", type=Path, help="folder to write (default: models/NAME)")
    parser.add_argument("--source", help="what bundle.toml says of where the checkpoint came from")
    parser.add_argument("--revision")
    parser.add_argument("--license")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        run(arguments)
    except Refusal as refusal:
        print(f"export: {refusal}", file=sys.stderr)
        return 2
    return 0


def run(arguments) -> None:
    # PyTorch and transformers take seconds to load: --help and wrong usage need none of it.
    from . import checkpoint, convert

    name = arguments.name or Path(arguments.checkpoint).name
    if not name or name.startswith(".") or "/" in name:
        raise Refusal(f"NAME={name!r} cannot name a folder under models/")
    loaded = checkpoint.load(arguments.checkpoint)
    request = convert.Request(
        name=name, target=arguments.out or MODELS / name, precision=arguments.precision, provider=arguments.provider,
        allow_unverified=os.environ.get("ALLOW_UNVERIFIED") == "1",
        source=arguments.source, revision=arguments.revision, license=arguments.license,
    )  # fmt: skip
    convert.export(loaded, request)


if __name__ == "__main__":
    sys.exit(main())
