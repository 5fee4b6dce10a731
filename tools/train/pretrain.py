"""Stage 1: masked-language training on all unlabelled text, whole words masked.

Owns the loop, its schedule and its checkpoints. The learning rate warms up, stays, and falls over the last part
of the planned steps; a run that is stopped goes on from its last checkpoint.
"""

import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import corpus, warmstart, model as net

log = logging.getLogger(__name__)
SHARE_MASKED = 0.20
SHARE_BY_CHARACTER = 0.6
CHUNK_TOKENS = 94
BATCH_TOKENS = 2048
SAVE_SECONDS = 150


def cached_rows(data: Path, tokenizer, cache: Path, scale: float, unseen):
    """All text as (ids, words) rows, kept in one file since word cutting takes a minute."""
    if cache.exists():
        stored = np.load(cache)
        # Each look-up in an npz file reads the whole array again.
        bounds, ids, words = stored["bounds"], stored["ids"], stored["words"]
        cut = [(ids[a:b], words[a:b]) for a, b in zip(bounds[:-1], bounds[1:])]
        return cut[: int(stored["titles"])], cut[int(stored["titles"]) :]
    titles, long = corpus.pretraining_texts(data, unseen)
    words = corpus.Words(tokenizer)
    keep = max(1, round(1 / scale))
    titles = [words(t) for t in titles[::keep]]
    long = [words(t[:1500]) for t in long[::keep]]
    rows = titles + long
    bounds = np.cumsum([0] + [len(ids) for ids, _ in rows])
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        cache, bounds=bounds, titles=len(titles),
        ids=np.concatenate([i for i, _ in rows]).astype(np.int32), words=np.concatenate([w for _, w in rows]).astype(np.int32),
    )
    return titles, long


def mask_words(ids, words, rng, share=SHARE_MASKED):
    """Hide whole words: (input, target) with target -100 where nothing is asked."""
    numbers = np.unique(words)
    chosen = rng.random(len(numbers)) < share
    if not chosen.any():
        chosen[rng.integers(len(numbers))] = True
    asked = np.isin(words, numbers[chosen])
    target = np.where(asked, ids, -100)
    dice = rng.random(len(ids))
    hidden = np.where(dice < 0.8, corpus.MASK, np.where(dice < 0.9, rng.integers(670, 8000, len(ids)), ids))
    return np.where(asked, hidden, ids), target


def epoch_batches(titles, long, rng, long_share):
    """Batches of equal-length rows, about BATCH_TOKENS tokens each, for one pass over the titles."""
    rows = []
    for ids, words in titles:
        rows.append((ids[:CHUNK_TOKENS], words[:CHUNK_TOKENS]))
    for ids, words in long:
        start = int(rng.integers(0, CHUNK_TOKENS))
        for at in range(start % max(1, len(ids) // 2 + 1), len(ids), CHUNK_TOKENS):
            if len(ids) - at > 12 and rng.random() < long_share:
                rows.append((ids[at : at + CHUNK_TOKENS], words[at : at + CHUNK_TOKENS]))
    rows = [r for r in rows if len(r[0]) > 4]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + rng.random() * 2)
    batches, current, longest = [], [], 0
    for i in order:
        longest = max(longest, len(rows[i][0]) + 2)
        if current and (len(current) + 1) * longest > BATCH_TOKENS:
            batches.append(current)
            current, longest = [], len(rows[i][0]) + 2
        current.append(rows[i])
    batches.append(current)
    rng.shuffle(batches)
    return batches


def collate(batch, rng):
    longest = max(len(ids) for ids, _ in batch) + 2
    inputs = np.full((len(batch), longest), corpus.PAD, np.int64)
    targets = np.full((len(batch), longest), -100, np.int64)
    for row, (ids, words) in enumerate(batch):
        # A character whose neighbours in the word are seen teaches how characters make words; a whole word, what words mean.
        units = np.arange(len(ids)) if rng.random() < SHARE_BY_CHARACTER else words
        masked, target = mask_words(ids, units, rng)
        inputs[row, 0] = corpus.CLS
        inputs[row, 1 : 1 + len(ids)] = masked
        inputs[row, 1 + len(ids)] = corpus.SEP
        targets[row, 1 : 1 + len(ids)] = target
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def loss_of(model, inputs, targets, occurring):
    """Cross entropy among the `occurring` tokens alone: a third of the vocabulary, at a third of the cost."""
    with torch.autocast("cpu", torch.bfloat16, enabled=net.HALF):
        mask = inputs != corpus.PAD
        hidden = model.encode(inputs, None if bool(mask.all()) else mask)
        asked = targets >= 0
        logits = model.logits(hidden[asked], occurring)
    return F.cross_entropy(logits.float(), torch.searchsorted(occurring, targets[asked]))


def rate(step, steps, peak, warmup=300, fall=0.25):
    """Warm up, stay, fall linearly to 2 % of the peak over the last quarter."""
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (steps - step) / max(1, steps * fall)
    return peak * max(0.02, min(1.0, left))


def run(data: Path, tokenizer, out: Path, steps: int, peak: float, seed: int, start: Path | None, scale: float, long_share: float, unseen=frozenset()):
    """Train towards `steps` steps into `out`; `start` is a checkpoint folder, or None for random weights.

    Titles in `unseen` are left out. A file named `stop-at` in `out` may change the number of steps of a run under way.
    """
    titles, long = cached_rows(data, tokenizer, out / "rows.npz", scale, unseen)
    log.info("rows titles=%d long=%d tokens=%d", len(titles), len(long), sum(len(i) for i, _ in titles + long))
    occurring = net.occurring(ids for ids, _ in titles + long)
    torch.manual_seed(seed)
    model = net.load(start) if start else net.CompactBert(net.Shape())
    if start is None and not (out / "state.pt").exists():
        warmstart.apply(model, [ids for ids, _ in titles + long], seed)
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1]
    plain = [p for n, p in model.named_parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=peak, betas=(0.9, 0.98), fused=True
    )
    step, epoch, saved = 0, 0, out / "state.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, epoch = state["step"], state["epoch"] + 1
        log.info("resumed step=%d", step)
    last_save, last_log, total, count, seen = time.time(), time.time(), 0.0, 0, 0
    done = False
    while not done:
        rng = np.random.default_rng([seed, epoch])
        for batch in epoch_batches(titles, long, rng, long_share):
            if (out / "stop-at").exists():
                steps = int((out / "stop-at").read_text())
            for group in optimizer.param_groups:
                group["lr"] = rate(step, steps, peak)
            inputs, targets = collate(batch, rng)
            loss = loss_of(model, inputs, targets, occurring)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step, total, count, seen = step + 1, total + loss.item(), count + 1, seen + inputs.numel()
            if count == 50:
                now = time.time()
                log.info("pretrain step=%d epoch=%d loss=%.3f rate=%.1e tokens_per_s=%.0f", step, epoch, total / count, rate(step, steps, peak), seen / (now - last_log))
                last_log, total, count, seen = now, 0.0, 0, 0
            done = step >= steps
            if done or time.time() - last_save > SAVE_SECONDS:
                partial = out / "state.partial"
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "epoch": epoch}, partial)
                partial.replace(saved)
                net.save(model, out)
                last_save = time.time()
            if done:
                break
        epoch += 1
    log.info("pretraining done step=%d", step)
