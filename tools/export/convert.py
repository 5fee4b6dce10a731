"""From a checkpoint to a bundle folder: trace, fuse, lower the precision, verify, write.

Owns the order of the steps and what is said about each. Knows nothing of the command line.
"""

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import bundle, graph, precision, tokenizer, verify
from .checkpoint import Checkpoint
from .errors import Refusal

log = logging.getLogger("export")


@dataclass(frozen=True)
class Request:
    """What to make of a checkpoint; source, revision and license replace what the checkpoint says of itself.

    `provider` is what an fp16 bundle is for: "cuda", ONNX Runtime's own, or "tensorrt", which fuses by itself and knows none of its operators.
    """

    name: str
    target: Path
    precision: str = "fp32"
    provider: str = "cuda"
    allow_unverified: bool = False
    source: str | None = None
    revision: str | None = None
    license: str | None = None


def export(checkpoint: Checkpoint, request: Request) -> verify.Result:
    """Writes the bundle to `request.target`; raises Refusal if it misses its limits and that is not allowed."""
    started = time.monotonic()
    if request.provider != "cuda" and request.precision != "fp16":
        raise Refusal(f"--for {request.provider} wants PRECISION=fp16, not {request.precision}")
    report_vocabulary(checkpoint.tokenizer)
    with bundle.staged(request.target) as folder, tempfile.TemporaryDirectory(dir=request.target.parent) as scratch:
        plain = Path(scratch) / "plain.onnx"
        step("trace", f"{checkpoint.architecture}, {parameters(checkpoint) / 1e6:.0f} million parameters")
        graph.trace(checkpoint.model, plain)
        if request.provider == "tensorrt":
            model = graph.unfused(plain)
        else:
            step("fuse", "ONNX Runtime's transformers optimizer")
            model = graph.fuse(plain, checkpoint.model.config)
        step("precision", request.precision)
        model_file = folder / "model.onnx"
        precision.write(model, request.precision, model_file, request.provider)
        checkpoint.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        result = verify.compare(model_file, checkpoint, request.precision)
        judge(result, request)
        tables = {"verification": verification(checkpoint, result)}
        if request.precision == "fp16":
            tables["tensorrt"] = tensorrt_profile(checkpoint.max_tokens)
        bundle.write_manifest(folder, facts(checkpoint, request), tables)
        size = bundle.bytes_of(folder) / 1e6
    step("done", f"{request.target}, {size:.1f} MB, {time.monotonic() - started:.0f} s")
    return result


def judge(result: verify.Result, request: Request) -> None:
    step("verified" if not result.misses() else "NOT VERIFIED", result.summary())
    if not result.misses():
        return
    why = "; ".join(result.misses())
    if not request.allow_unverified:
        raise Refusal(
            f"the {result.precision} bundle differs too much from the checkpoint ({why}); nothing was written. "
            "Use a higher PRECISION, or set ALLOW_UNVERIFIED=1 to write it marked as unverified"
        )
    log.warning("writing an unverified bundle as ALLOW_UNVERIFIED=1 asks: %s", why)


def report_vocabulary(fast) -> None:
    if not tokenizer.keeps_capitals(fast):
        return
    texts = verify.texts()
    kept, lowered = (100 * tokenizer.unknown_share(fast, some) for some in (texts, [text.lower() for text in texts]))
    log.warning(
        "the tokenizer keeps capital letters, the vocabulary has none: %.2f %% of the tokens of the test sentences are unknown, "
        '%.2f %% in lower case. If the checkpoint was trained on lower-cased text, set "do_lower_case": true in its tokenizer_config.json',
        kept, lowered,
    )  # fmt: skip


def facts(checkpoint: Checkpoint, request: Request) -> dict:
    config = checkpoint.model.config
    return {
        "contract": graph.CONTRACT,
        "name": request.name,
        "architecture": checkpoint.architecture,
        "source": request.source or checkpoint.source,
        "revision": request.revision or checkpoint.revision,
        "license": request.license or checkpoint.license,
        "hidden_size": config.hidden_size,
        "max_tokens": checkpoint.max_tokens,
        "vocabulary_size": config.vocab_size,
        "precision": request.precision,
    }


def verification(checkpoint: Checkpoint, result: verify.Result) -> dict:
    share = tokenizer.unknown_share(checkpoint.tokenizer, verify.texts())
    return {**result.facts(), "unknown_token_share": round(share, 5)}


def tensorrt_profile(max_tokens: int) -> dict:
    """The shapes that one engine of TensorRT is built for: smallest, best, largest. Beyond them it would build another, for minutes."""
    sizes = {"smallest": (1, 1, 1, 1), "best": (256, min(64, max_tokens), 2, 64), "largest": (1024, max_tokens, 8, 4096)}
    return {
        name: f"input_ids:{rows}x{tokens},attention_mask:{rows}x{tokens},mask_positions:{rows}x{masks},label_token_ids:{labels}"
        for name, (rows, tokens, masks, labels) in sizes.items()
    }


def parameters(checkpoint: Checkpoint) -> int:
    return sum(parameter.numel() for parameter in checkpoint.model.parameters())


def step(what: str, detail: str) -> None:
    log.info("%-12s %s", what, detail)
