"""The rows of the last tuning: more of THUCNews, crops of its titles, and part of the rows that were held out of it.

A student of this size learns THUCNews from what words occur, and crops carry the counting teacher's knowledge of words
to it. TNEWS dev_few_all and the last rows of THUCNews stay held out. Owns the composition; knows nothing of the loop.
"""

import logging
import pickle
from pathlib import Path

import numpy as np
from scipy.special import softmax

from . import corpus, softlabels, teacher

log = logging.getLogger("train")
CROP_SHARE = (0.4, 0.7)
CROP_HARD_SHARE = 0.5
TITLE_REPEATS, CROP_REPEATS, FREE_REPEATS = 2.2, 0.8, 0.6
FREE_WEIGHT, CROP_WEIGHT = 0.5, 0.8


def crops(texts, labels, seed: int):
    """A run of words out of each title of five words or more: (texts, labels)."""
    import jieba

    rng = np.random.default_rng(seed)
    found, kept = [], []
    for text, label in zip(texts, labels):
        words = jieba.lcut(text)
        if len(words) < 5:
            continue
        length = max(3, int(len(words) * rng.uniform(*CROP_SHARE)))
        start = rng.integers(0, len(words) - length + 1)
        found.append("".join(words[start : start + length]).strip())
        kept.append(label)
    return found, np.array(kept)


def extend(group: softlabels.Group, cut, thucnews, weight: float, repeats: float) -> None:
    """Append rows that only THUCNews has a target for."""
    count = len(cut)
    group.ids += [ids[: softlabels.TEXT_TOKENS] for ids, _ in cut]
    group.words += [words[: softlabels.TEXT_TOKENS] for _, words in cut]
    classes = group.targets["tnews"].shape[1]
    group.targets["tnews"] = np.vstack([group.targets["tnews"], np.full((count, classes), 1 / classes, np.float32)])
    group.targets["thucnews"] = np.vstack([group.targets["thucnews"], thucnews.astype(np.float32)])
    group.weights["tnews"] = np.append(group.weights["tnews"], np.zeros(count, np.float32))
    group.weights["thucnews"] = np.append(group.weights["thucnews"], np.full(count, weight, np.float32))
    group.repeats = np.append(group.repeats, np.full(count, repeats))


def run(data: Path, tokenizer, before: Path, rows: Path, seed: int, scale: float) -> None:
    """Write `rows` from the groups of `before`, the rows of the stage before this one."""
    group = pickle.loads(before.read_bytes())[0]
    news, words = softlabels.News(data, scale, seed), corpus.Words(tokenizer)
    first, free = 2 * len(news.tnews_texts), len(news.free_texts)
    group.repeats[first : first + free] = FREE_REPEATS
    group.weights["thucnews"][first : first + free] = FREE_WEIGHT
    group.repeats[first + free :] = TITLE_REPEATS

    lower = lambda texts: [t.lower() for t in texts]
    texts, labels = news.thucnews_texts, news.thucnews_labels
    features = teacher.Features(lower(texts), seed)
    weights = teacher.bayes(features(lower(texts)).sparse, labels, 10, 0.3)
    opinion = lambda asked: softmax(4 * (features(lower(asked)).sparse @ weights.T), axis=1)

    held = corpus.every(corpus.released(data), max(1, round(1 / scale) // 20))
    soft = softlabels.HARD_SHARE * np.eye(10)[held.labels] + (1 - softlabels.HARD_SHARE) * opinion(held.texts)
    extend(group, [words(t) for t in held.texts], soft, 1.0, TITLE_REPEATS)
    cut, cut_labels = crops(texts, labels, seed)
    soft = CROP_HARD_SHARE * np.eye(10)[cut_labels] + (1 - CROP_HARD_SHARE) * opinion(cut)
    extend(group, [words(t) for t in cut], soft, CROP_WEIGHT, CROP_REPEATS)
    rows.write_bytes(pickle.dumps([group]))
    log.info("rows %d, crops %d, an epoch %.0f", len(group.ids), len(cut), group.repeats.sum())
