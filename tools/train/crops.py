"""More rows for the last tuning: more of THUCNews, crops of its titles, and part of the rows that were held out of it.

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
HARD_SHARE, CROP_HARD_SHARE = 0.6, 0.5
# A network that knows titles by heart reads new ones worse: few repeats of them, many crops that are rarely seen twice.
TITLE_REPEATS, FREE_REPEATS, CROP_REPEATS, MORE_REPEATS = 1.0, 1.0, 0.4, 0.3
FREE_WEIGHT, CROP_WEIGHT = 0.5, 0.8
FOLDS = 4


def crop(words, low: float, high: float, rng) -> str:
    """A run of words, `low` to `high` of the whole and three at least."""
    length = max(3, int(len(words) * rng.uniform(low, high)))
    start = rng.integers(0, max(1, len(words) - length + 1))
    return "".join(words[start : start + length]).strip()


def crops(texts, labels, seed: int):
    """Two crops of each title, and one joined with a crop of another title of its class: (texts, title numbers)."""
    import jieba

    rng, cut = np.random.default_rng(seed), [jieba.lcut(t) for t in texts]
    alike = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    found, owner = [], []
    for number, words in enumerate(cut):
        other = cut[rng.choice(alike[labels[number]])]
        made = [f"{crop(words, 0.3, 0.6, rng)} {crop(other, 0.3, 0.6, rng)}"]
        if len(words) >= 5:
            made += [crop(words, 0.4, 0.8, rng), crop(words, 0.4, 0.8, rng)]
        found += made
        owner += [number] * len(made)
    return found, np.array(owner)


def pairs(texts, seed: int, each: int = 3):
    """Crops of two titles whatever their classes, `each` a title: (texts, number of the first title)."""
    import jieba

    rng, cut = np.random.default_rng(seed), [jieba.lcut(t) for t in texts]
    owner = np.repeat(np.arange(len(texts)), each)
    others = rng.integers(0, len(texts), len(owner))
    found = [f"{crop(cut[a], 0.3, 0.6, rng)} {crop(cut[b], 0.2, 0.5, rng)}" for a, b in zip(owner, others)]
    return found, owner


class Folded:
    """Titles in folds, and texts as weights of their n-grams."""

    def __init__(self, texts, seed: int):
        self.features = teacher.Features([t.lower() for t in texts], seed)
        self.fold = np.random.default_rng(seed).permutation(len(texts)) % FOLDS

    def counted(self, texts):
        return self.features([t.lower() for t in texts]).sparse


class FoldedBayes(Folded):
    """Naive Bayes opinions on titles and on crops of them, each by counts that leave the title out."""

    def __init__(self, texts, labels, seed: int):
        super().__init__(texts, seed)
        counted = self.counted(texts)
        self.weights = [teacher.bayes(counted[self.fold != f], labels[self.fold != f], 10, 0.3) for f in range(FOLDS)]

    def __call__(self, texts, owner):
        counted, opinions = self.counted(texts), np.zeros((len(texts), 10))
        for number, weights in enumerate(self.weights):
            rows = self.fold[owner] == number
            opinions[rows] = softmax(4 * (counted[rows] @ weights.T), axis=1)
        return opinions


def softened(labels, opinions, hard: float):
    return hard * np.eye(10)[labels] + (1 - hard) * opinions


def extend(group: softlabels.Group, cut, targets: dict, weights: dict, repeats: float) -> None:
    """Append rows; in a space without targets they have an even one, which counts nothing."""
    count = len(cut)
    group.ids += [ids[: softlabels.TEXT_TOKENS] for ids, _ in cut]
    group.words += [words[: softlabels.TEXT_TOKENS] for _, words in cut]
    for space, table in group.targets.items():
        added = targets.get(space, np.full((count, table.shape[1]), 1 / table.shape[1]))
        group.targets[space] = np.vstack([table, added.astype(np.float32)])
        group.weights[space] = np.append(group.weights[space], np.full(count, weights.get(space, 0), np.float32))
    group.repeats = np.append(group.repeats, np.full(count, repeats))


def titles_of(data: Path, news, scale: float):
    """(rows that were held out before, all THUCNews titles, their labels)."""
    held = corpus.every(corpus.released(data), max(1, round(1 / scale) // 20))
    return held, news.thucnews_texts + list(held.texts), np.concatenate([news.thucnews_labels, held.labels])


def run(data: Path, tokenizer, before: Path, rows: Path, seed: int, scale: float) -> None:
    """Write `rows` from the groups of `before`, the rows of the stage before this one."""
    group = pickle.loads(before.read_bytes())[0]
    news, words = softlabels.News(data, scale, seed), corpus.Words(tokenizer)
    first, free = 2 * len(news.tnews_texts), len(news.free_texts)
    group.repeats[first : first + free] = FREE_REPEATS
    group.weights["thucnews"][first : first + free] = FREE_WEIGHT
    group.repeats[first + free :] = TITLE_REPEATS

    titles = first + free
    opinions = (group.targets["thucnews"][titles:] - softlabels.HARD_SHARE * np.eye(10)[news.thucnews_labels]) / (1 - softlabels.HARD_SHARE)
    group.targets["thucnews"][titles:] = softened(news.thucnews_labels, opinions, HARD_SHARE)

    held, texts, labels = titles_of(data, news, scale)
    bayes = FoldedBayes(texts, labels, seed)
    own = np.arange(len(news.thucnews_texts), len(texts))

    def add(cut, opinions, weight, repeats):
        """THUCNews alone has a target for these."""
        extend(group, [words(t) for t in cut], {"thucnews": opinions}, {"thucnews": weight}, repeats)

    add(held.texts, softened(held.labels, bayes(held.texts, own), HARD_SHARE), 1.0, TITLE_REPEATS)
    group.titles = len(group.ids)
    for draw, repeats in ((seed, CROP_REPEATS), (seed + 1, MORE_REPEATS)):
        cut, owner = crops(texts, labels, draw)
        add(cut, softened(labels[owner], bayes(cut, owner), CROP_HARD_SHARE), CROP_WEIGHT, repeats)
    mixed, owner = pairs(texts, seed + 2)
    add(mixed, bayes(mixed, owner), CROP_WEIGHT, MORE_REPEATS)
    rows.write_bytes(pickle.dumps([group]))
    log.info("rows %d, an epoch %.0f", len(group.ids), group.repeats.sum())


# Of the counting teachers' opinion on a bag, by label space.
BAG_WEIGHTS = {"thucnews": 0.8, "tnews": 0.4, corpus.NEWS_SPACE: 0.8}
BAG_REPEATS = 0.5
BAGS = 200_000
FROM_THUCNEWS = 0.55


class FoldedTeachers(Folded):
    """Opinions in every label space on pieces of titles, each by teachers that did not see the fold of its title.

    A labelled title of TNEWS and the same with its keywords are two titles here.
    """

    def __init__(self, texts, group: softlabels.Group, seed: int):
        super().__init__(texts, seed)
        counted, rows = self.counted(texts), len(texts)
        # A title that comes often an epoch counts twice at most: the teachers would know it by heart.
        seen = {space: weights[:rows] * np.clip(group.repeats[:rows], 1, 2) for space, weights in group.weights.items()}

        def teachers(kept):
            return {
                space: teacher.SoftTeacher(counted[kept], table[:rows][kept], seen[space][kept]) for space, table in group.targets.items()
            }

        self.teachers = [teachers(self.fold != fold) for fold in range(FOLDS)]

    def __call__(self, texts, owner):
        """Opinions per space; `owner` numbers the title that may not have taught them."""
        counted, folds = self.counted(texts), self.fold[owner]
        found = {space: np.zeros((len(texts), one.classes), np.float32) for space, one in self.teachers[0].items()}
        for fold, teachers in enumerate(self.teachers):
            rows = np.flatnonzero(folds == fold)
            for space, one in teachers.items():
                found[space][rows] = one(counted[rows])
        return found


def bags(texts, preferred, count: int, rng):
    """`count` texts of two or three pieces of titles whatever their classes, the first one often from the slice `preferred`.

    Returns (texts, number of the first title).
    """
    import jieba

    cut, found, owner = [jieba.lcut(t) for t in texts], [], []
    for _ in range(count):
        first = rng.integers(preferred.start, preferred.stop) if rng.random() < FROM_THUCNEWS else rng.integers(0, preferred.start)
        pieces = [first, *rng.integers(0, len(cut), rng.integers(1, 3))]
        found.append(" ".join(crop(cut[piece], 0.25, 0.6, rng) for piece in pieces))
        owner.append(first)
    return found, np.array(owner)


def bag_count(scale: float) -> int:
    return max(50, round(BAGS * scale))


def run_bags(data: Path, tokenizer, before: Path, rows: Path, seed: int, scale: float) -> None:
    """Write `rows`: the group of `before` and bags, which no title's wording helps to answer."""
    (group,) = pickle.loads(before.read_bytes())
    news, words = softlabels.News(data, scale, seed), corpus.Words(tokenizer)
    _, thucnews, _ = titles_of(data, news, scale)
    free = softlabels.with_comma(news.free_texts, news.free_keywords)
    # The order of the group's rows, crops and pairs left out.
    texts = news.tnews_texts + softlabels.with_comma(news.tnews_texts, news.tnews_keywords) + free + thucnews
    teachers, rng = FoldedTeachers(texts, group, seed), np.random.default_rng(seed)
    first = len(texts) - len(thucnews)
    found, owner = bags(texts, slice(first, len(texts)), bag_count(scale), rng)
    extend(group, [words(text) for text in found], teachers(found, owner), BAG_WEIGHTS, BAG_REPEATS)
    rows.write_bytes(pickle.dumps([group]))
    log.info("bags %d", len(found))
