"""Stage 2: the rows that tuning reads: texts, hard labels and the teachers' soft labels, kept in one file.

Owns which text is trained with which target. Knows nothing of the training loop.
"""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import corpus, teacher

log = logging.getLogger(__name__)
FOLDS = 4
SHARPEN = 1.5
HARD_SHARE = 0.8
TEXT_TOKENS = 64


@dataclass
class Group:
    """Rows that share a prompt: token ids, word numbers, targets per label space, weights per space, repeats an epoch.

    The first `titles` rows are whole titles, all of them if it is None; crops, bags and queries are none. `places` [rows, dims] are
    where a sentence encoder puts them, if one was asked.
    """

    prompts: tuple
    ids: list
    words: list
    targets: dict
    weights: dict
    repeats: np.ndarray
    titles: int | None = None
    places: np.ndarray | None = None


def _sharp(opinions, power=SHARPEN):
    raised = opinions**power
    return raised / raised.sum(1, keepdims=True)


def _smoothed(labels, classes, opinions):
    return HARD_SHARE * np.eye(classes)[labels] + (1 - HARD_SHARE) * opinions


def _keywords(row_texts, keywords):
    return [f"{text} {words}".strip() for text, words in zip(row_texts, keywords)]


class News:
    """Both news label spaces over the titles of both data sets, without what is held out."""

    def __init__(self, data: Path, scale: float, seed: int):
        keep = max(1, round(1 / scale))
        tnews = corpus.every(corpus.read_labelled(data, "tnews", "train_few_all"), max(1, keep // 20))
        self.tnews_texts, self.tnews_labels = tnews.texts, tnews.labels
        self.tnews_keywords = corpus.read_keywords(data, "train_few_all")[:: max(1, keep // 20)]
        unlabelled, words = corpus.read_unlabelled(data), corpus.read_keywords(data, "unlabeled")
        self.free_texts, self.free_keywords = unlabelled[::keep], words[::keep]
        thucnews = [corpus.read_labelled(data, "thucnews", part) for part in ("dev", "test_half_a")]
        held = set(corpus.held_out(data)["thucnews"].texts)
        rows = [(t, y) for d in thucnews for t, y in zip(d.texts, d.labels) if t not in held]
        rows = rows[:: max(1, keep // 20)]
        self.thucnews_texts = [t for t, _ in rows]
        self.thucnews_labels = np.array([y for _, y in rows])
        self.seed = seed

    def opinions(self):
        """(tnews, free, thucnews) rows, each a dict of soft labels per space."""
        lower = lambda texts: [t.lower() for t in texts]
        counted_texts = {
            "tnews": lower(self.tnews_texts),
            "tnews+": lower(_keywords(self.tnews_texts, self.tnews_keywords)),
            "free+": lower(_keywords(self.free_texts, self.free_keywords)),
            "thucnews": lower(self.thucnews_texts),
        }
        features = teacher.Features(counted_texts["tnews+"] + counted_texts["free+"] + counted_texts["thucnews"], self.seed)
        counted = {name: features(texts) for name, texts in counted_texts.items()}
        log.info("counted features=%d", counted["tnews"].sparse.shape[1])
        thucnews = teacher.ThucnewsTeacher(counted["thucnews"], self.thucnews_labels)
        tnews = teacher.TnewsTeacher(counted["tnews"], counted["tnews+"], self.tnews_labels, thucnews)

        def thucnews_fold(kept, asked):
            part = teacher.ThucnewsTeacher(teacher.take(counted["thucnews"], kept), self.thucnews_labels[kept])
            return part(teacher.take(counted["thucnews"], asked))

        def tnews_fold(kept, asked):
            titles, both = teacher.take(counted["tnews"], kept), teacher.take(counted["tnews+"], kept)
            part = teacher.TnewsTeacher(titles, both, self.tnews_labels[kept], thucnews)
            return part(teacher.take(counted["tnews+"], asked))

        own_tnews = teacher.out_of_fold(tnews_fold, np.arange(len(self.tnews_labels)), 15, FOLDS, self.seed)
        own_thucnews = teacher.out_of_fold(thucnews_fold, np.arange(len(self.thucnews_labels)), 10, FOLDS, self.seed)
        log.info(
            "out of fold tnews=%.3f thucnews=%.3f",
            (own_tnews.argmax(1) == self.tnews_labels).mean(), (own_thucnews.argmax(1) == self.thucnews_labels).mean(),
        )
        return (
            {"tnews": _smoothed(self.tnews_labels, 15, own_tnews), "thucnews": thucnews(counted["tnews+"])},
            {"tnews": _sharp(tnews(counted["free+"])), "thucnews": thucnews(counted["free+"])},
            {"tnews": tnews(counted["thucnews"]), "thucnews": _smoothed(self.thucnews_labels, 10, own_thucnews)},
        )


def news_group(news: News, opinions, words, free_extra=None) -> Group:
    """One group of all titles. `free_extra` are a student's opinions on the unlabelled titles, mixed in evenly.

    The blocks stand in this order: labelled TNEWS, the same with keywords, unlabelled TNEWS, THUCNews.
    """
    labelled, free, thucnews = opinions
    if free_extra is not None:
        free = {space: teacher.mixed((free[space], free_extra[space]), (0.5, 0.5)) for space in free}
    blocks = (  # texts, targets, weight of the tnews target, of the thucnews target, repeats an epoch
        (news.tnews_texts, labelled, 1.0, 0.4, 3.0),
        (with_comma(news.tnews_texts, news.tnews_keywords), labelled, 1.0, 0.4, 1.0),
        (news.free_texts, free, 1.0, 0.3, 0.8),
        (news.thucnews_texts, thucnews, 0.3, 1.0, 1.8),
    )
    cut = [words(text) for texts, *_ in blocks for text in texts]
    sizes = [len(texts) for texts, *_ in blocks]
    return Group(
        corpus.NEWS_PROMPTS,
        [i[:TEXT_TOKENS] for i, _ in cut],
        [w[:TEXT_TOKENS] for _, w in cut],
        {space: np.concatenate([b[1][space] for b in blocks]).astype(np.float32) for space in ("tnews", "thucnews")},
        {
            "tnews": np.repeat([b[2] for b in blocks], sizes).astype(np.float32),
            "thucnews": np.repeat([b[3] for b in blocks], sizes).astype(np.float32),
        },
        np.repeat([b[4] for b in blocks], sizes),
    )


def run(data: Path, tokenizer, out: Path, seed: int, scale: float, student=None, rows: Path | None = None) -> None:
    """Write the groups to `rows` (`out`/rows.pkl unless given); the counting teachers' opinions are kept in `out`.

    `student(texts)` gives a network's opinions per label space; they join the teachers' on unlabelled titles.
    """
    out.mkdir(parents=True, exist_ok=True)
    words = corpus.Words(tokenizer)
    news = News(data, scale, seed)
    stored = out / "opinions.pkl"
    if not stored.exists():
        stored.write_bytes(pickle.dumps(news.opinions()))
    opinions = pickle.loads(stored.read_bytes())
    extra = student(with_comma(news.free_texts, news.free_keywords)) if student else None
    groups = [news_group(news, opinions, words, extra)]
    (rows or out / "rows.pkl").write_bytes(pickle.dumps(groups))
    log.info("rows %s", [len(g.ids) for g in groups])


def with_comma(texts, keywords):
    """Titles followed by their keywords, as the students read them."""
    return [f"{t}，{'，'.join(k.split()[:6])}" if k else t for t, k in zip(texts, keywords)]
