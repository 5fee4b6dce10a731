"""Command line: python -m tools.finetune --checkpoint C --taxonomy T --train FILE --name NAME, from the repository's root."""

import argparse
import json
import logging
import os
import shutil
import sys
from pathlib import Path

from tools.export.errors import Refusal

ROOT = Path(__file__).resolve().parents[2]


def arguments():
    parser = argparse.ArgumentParser(prog="finetune", description="fine-tune a checkpoint on labelled documents and export it as a bundle")
    parser.add_argument("--checkpoint", required=True, help="a folder in the published layout or a model's name on the hub; models/compact for the bundled one")
    parser.add_argument("--taxonomy", required=True, help="a taxonomy's name under config/taxonomies or a TOML file")
    parser.add_argument("--train", type=Path, required=True, help="JSON lines with a text and a label (or text, tab, label)")
    parser.add_argument("--dev", type=Path, help="what early stopping looks at (default: a tenth of --train, kept out of it)")
    parser.add_argument("--test", type=Path, help="measured before and after, never looked at in between")
    parser.add_argument("--text-field")
    parser.add_argument("--label-field")
    parser.add_argument("--name", required=True, help="name of the bundle under models/")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--patience", type=int, default=3, help="epochs without a better held-out accuracy before it stops")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, help="default: 2e-4 below 60 million parameters, 2e-5 above")
    parser.add_argument("--max-tokens", type=int, default=128, help="of a training document; the bundle keeps the model's maximum")
    parser.add_argument("--prompt", type=int, default=1, help="which of the taxonomy's prompts, from 1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder of the run (default: .cache/finetune/NAME)")
    parser.add_argument("--out", type=Path, help="folder of the bundle (default: models/NAME)")
    parser.add_argument("--restart", action="store_true", help="begin anew instead of going on")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("export", "finetune"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        print(json.dumps(run(given), ensure_ascii=False))
    except Refusal as refusal:
        print(f"finetune: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("finetune: stopped; the same command goes on from the last saved state", file=sys.stderr)
        return 130
    return 0


def run(given) -> dict:
    import torch

    from tools.export import checkpoint, convert

    from . import data, loop, task

    if given.threads:
        torch.set_num_threads(given.threads)
    path = Path(given.taxonomy)
    taxonomy_file = path if path.suffix == ".toml" else ROOT / "config" / "taxonomies" / f"{given.taxonomy}.toml"
    taxonomy = data.read_taxonomy(taxonomy_file)
    if not 1 <= given.prompt <= len(taxonomy.prompts):
        raise Refusal(f"--prompt {given.prompt}: {taxonomy_file} has {len(taxonomy.prompts)} prompts")

    def examples(path):
        return data.read(path, taxonomy_file, given.text_field, given.label_field)

    training, held_out = (examples(given.train), examples(given.dev)) if given.dev else data.split(examples(given.train), given.seed)
    test = examples(given.test) if given.test else []
    loaded = checkpoint.load(given.checkpoint)
    rate = given.learning_rate or loop.learning_rate_for(convert.parameters(loaded))
    plan = loop.Plan(
        checkpoint=loaded.revision, taxonomy=str(taxonomy_file), documents=len(training), epochs=given.epochs, batch=given.batch, learning_rate=rate,
        patience=given.patience, max_tokens=min(given.max_tokens, loaded.max_tokens), prompt=given.prompt - 1, seed=given.seed,
    )  # fmt: skip
    work = given.work or ROOT / ".cache" / "finetune" / given.name
    if given.restart:
        shutil.rmtree(work, ignore_errors=True)
    job = task.Task(loaded.tokenizer, taxonomy, plan.max_tokens, plan.prompt)
    before = measure(loaded.model, job, test)
    fine_tuning = loop.Run(work, plan, loaded, job, training, held_out)
    fine_tuning.train()
    best = checkpoint.load(str(work / "best"))
    after = measure(best.model, job, test)
    target = given.out or ROOT / "models" / given.name
    request = convert.Request(
        name=given.name, target=target, precision=given.precision, allow_unverified=os.environ.get("ALLOW_UNVERIFIED") == "1",
        source=f"{loaded.source}, fine-tuned on {len(training)} documents of {taxonomy.name}", license=loaded.license,
    )  # fmt: skip
    convert.export(best, request)
    return {"bundle": str(target), "curve": str(work / "curve.png"), "history": fine_tuning.history, "test_before": before, "test_after": after}


def measure(model, job, examples: list) -> dict | None:
    from .task import accuracy, macro_f1

    if not examples:
        return None
    said = job.predict(model, [job.encode(example.text) for example in examples])
    wanted = [example.label for example in examples]
    return {"documents": len(wanted), "accuracy": accuracy(said, wanted), "macro_f1": macro_f1(said, wanted)}


if __name__ == "__main__":
    sys.exit(main())
