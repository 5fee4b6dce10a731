"""Runs a bundle beside its checkpoint in PyTorch and says whether the two agree well enough for the bundle's precision.

Owns the fixed sentences, what is compared and the limits. Knows nothing of how the graph came to be.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from tqdm import tqdm

from . import protocol
from .checkpoint import Checkpoint
from .tokenizer import plain_ids

SENTENCES = Path(__file__).with_name("sentences.txt")
PROMPT = "下面是一则关于{label}的新闻："
LABELS = "故事 文化 娱乐 体育 财经 房产 汽车 教育 科技 军事 旅游 国际 股票 农业 电竞".split()
# Other numbers of masks than two, checked on a few sentences: the worker runs one pass for each length of label words.
OTHER_LENGTHS = {1: ["书", "车", "股"], 3: ["房地产", "互联网", "奥运会"], 4: ["人工智能", "电子游戏"]}
MARGIN = 0.1
ENOUGH = 200
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Limits:
    """`log_prob` is judged where it is the only measure (fp32, and a checkpoint whose labels lie too close to count)."""

    log_prob: float
    cosine: float
    same_label: float


LIMITS = {"fp32": Limits(1e-3, 0.99999, 1.0), "fp16": Limits(5e-2, 0.9995, 0.995), "int8": Limits(1.0, 0.99, 0.98)}


@dataclass
class Result:
    """The differences found over the fixed sentences."""

    precision: str
    sentences: int
    max_log_prob_difference: float
    min_cosine: float
    counted: int
    same_label: float

    def misses(self) -> list:
        """What is beyond the limits, in words; empty for a bundle that may be used."""
        limits, found = LIMITS[self.precision], []
        if not self.min_cosine >= limits.cosine:
            found.append(f"cosine {self.min_cosine:.6f} < {limits.cosine}")
        by_label = self.counted >= ENOUGH
        if by_label and not self.same_label >= limits.same_label:
            found.append(f"same label on {self.same_label:.2%} < {limits.same_label:.1%}")
        if (self.precision == "fp32" or not by_label) and not self.max_log_prob_difference <= limits.log_prob:
            found.append(f"max |d log p| {self.max_log_prob_difference:.2e} > {limits.log_prob:.0e}")
        return found

    def facts(self) -> dict:
        """Keys of bundle.toml's [verification]."""
        return {
            "status": "unverified" if self.misses() else "verified",
            "sentences": self.sentences,
            "max_log_prob_difference": float(f"{self.max_log_prob_difference:.3e}"),
            "min_cosine": round(float(self.min_cosine), 7),
            "same_label": round(float(self.same_label), 5),
            "same_label_counted": self.counted,
        }

    def summary(self) -> str:
        labels = f"same label on {self.same_label:.2%} of {self.counted} clear sentences"
        if self.counted < ENOUGH:
            labels += f" (fewer than {ENOUGH}, so not judged)"
        return f"max |d log p| {self.max_log_prob_difference:.2e}, min cosine {self.min_cosine:.6f}, {labels}"


def texts() -> list:
    """Short headlines, and what else a stream brings: empty, long, too long, mixed scripts, special tokens as text."""
    short = [line for line in SENTENCES.read_text(encoding="utf-8").splitlines() if line]
    others = [
        "", "。", "iPhone 17 Pro Max 在 Apple Store 首发，售价 US$1,199", "東京オリンピックのマラソン、優勝はケニアの選手", "Ｆｕｌｌ－ｗｉｄｔｈ　ＡＢＣ　１２３，全角字符測試",
        "比分[MASK][MASK]：3-2[SEP]下一场[CLS]再战", "今天的心情😀👍🏽，转发抽奖🎁", "Русские новости и ελληνικά，naïve café Ångström",
        "，".join(short[:12]), "。".join(short[30:60]), "。".join(short[60:100]), "；".join(short[100:]),
    ]  # fmt: skip
    return short + others


def session(path: Path, providers=("CPUExecutionProvider",), threads: int = 0):
    """An ONNX Runtime session that is quiet."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=list(providers))


def compare(model_file: Path, checkpoint: Checkpoint, precision: str, *, progress: bool = True) -> Result:
    """Runs both models over the sentences in the same padded batches."""
    run, reference = session(model_file), protocol.torch_forward(checkpoint.model)
    tokenizer = checkpoint.tokenizer
    pad = tokenizer.pad_token_id
    difference, cosines, same, counted = 0.0, [], 0, 0
    jobs = list(plan(tokenizer, checkpoint.max_tokens))
    for masks, words, batch in tqdm(jobs, desc=f"verify {precision}", unit="batch", disable=None if progress else True):
        feed = padded(batch, pad)
        word_ids = [fitted(plain_ids(tokenizer, word), masks, tokenizer.unk_token_id) for word in words]
        feed["label_token_ids"] = np.unique(np.array(word_ids, dtype=np.int64))
        got_log_probs, got_embedding = run.run(["label_log_probs", "sentence_embedding"], feed)
        all_log_probs, hidden = reference(feed["input_ids"], feed["attention_mask"])
        rows = np.take_along_axis(all_log_probs, feed["mask_positions"][:, :, None], axis=1)
        want_log_probs = rows[:, :, feed["label_token_ids"]]
        mask = feed["attention_mask"][:, :, None]
        want_embedding = (hidden * mask).sum(1) / mask.sum(1)
        difference = max(difference, float(np.abs(got_log_probs - want_log_probs).max()))
        if not (np.isfinite(got_log_probs).all() and np.isfinite(got_embedding).all()):
            difference, got_embedding = float("inf"), np.zeros_like(got_embedding)
        cosines += cosine(got_embedding, want_embedding)
        if masks == protocol.EMBEDDING_MASKS:
            want, got = (scores(x, feed["label_token_ids"], word_ids) for x in (want_log_probs, got_log_probs))
            top = np.sort(want, axis=1)
            clear = top[:, -1] - top[:, -2] > MARGIN
            counted += int(clear.sum())
            same += int((want.argmax(1) == got.argmax(1))[clear].sum())
    return Result(precision, len(cosines), difference, min(cosines), counted, same / counted if counted else 1.0)


def plan(tokenizer, max_tokens: int):
    """Yields (masks, label words, encoded documents), each batch within the token budget."""
    whole = texts()
    yield from ((2, LABELS, batch) for batch in batches(tokenizer, whole, 2, max_tokens))
    few = whole[:40:5] + whole[-6:]
    for masks, words in OTHER_LENGTHS.items():
        yield from ((masks, words, batch) for batch in batches(tokenizer, few, masks, max_tokens))


def batches(tokenizer, documents: list, masks: int, max_tokens: int):
    encoded = [protocol.encode(tokenizer, PROMPT, masks, text, max_tokens) for text in documents]
    encoded.sort(key=lambda document: len(document.input_ids))
    batch = []
    for document in encoded:
        if batch and (len(batch) + 1) * len(document.input_ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(document)
    yield batch


def padded(batch: list, pad: int) -> dict:
    width = max(len(document.input_ids) for document in batch)
    ids = np.full((len(batch), width), pad, dtype=np.int64)
    mask = np.zeros((len(batch), width), dtype=np.int64)
    for row, document in enumerate(batch):
        ids[row, : len(document.input_ids)] = document.input_ids
        mask[row, : len(document.input_ids)] = 1
    positions = np.array([document.mask_positions for document in batch], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": mask, "mask_positions": positions}


def fitted(ids: list, masks: int, unknown: int) -> list:
    """A word's ids with exactly `masks` of them: a foreign vocabulary may cut it otherwise, which does not matter here."""
    return (ids + [unknown] * masks)[:masks]


def scores(log_probs: np.ndarray, token_ids: np.ndarray, word_ids: list) -> np.ndarray:
    """Mean log p of each word over the masks: [batch, words]."""
    column = {int(token): index for index, token in enumerate(token_ids)}
    return np.stack([np.mean([log_probs[:, at, column[token]] for at, token in enumerate(ids)], axis=0) for ids in word_ids], axis=1)


def cosine(left: np.ndarray, right: np.ndarray) -> list:
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return list((left * right).sum(1) / np.maximum(norms, 1e-30))
