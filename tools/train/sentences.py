"""The rows of the last tuning: every text with the place that a sentence encoder gives it, queries and passages besides.

Topics alone say nothing of what a text is about within its topic, and a search asks for that first. Regressions on the places also join the
other teachers. Owns those rows; knows nothing of the loop, nor of how a place is asked for (likeness.py).
"""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from . import corpus, crops, joint, softlabels, teacher

log = logging.getLogger("train")
DIMS = 256
QUERIES, PASSAGES = 80_000, 30_000
QUERY_REPEATS, PASSAGE_REPEATS = 0.4, 0.4
SHORTEST_PASSAGE, LONGEST_PASSAGE = 16, 120
JOINTS = ("", "", " ", " ", "和", "的", "、")
FOLDS = 4
# What tells the politics of other countries from those of China, as the encoder understands it, and the shares of 时政 that this sorts surely.
ABROAD = ("国际新闻，外国政府和外国发生的事", "外国", "世界各国新闻", "外国领导人和国际关系")
AT_HOME = ("国内时政，中国政府和政策", "中国国内", "国务院和地方政府工作", "我国干部和法规")
SURELY_ABROAD, SURELY_AT_HOME = 0.5, 0.1
OPINION_SHARES, QUERY_WEIGHT = {"tnews": 0.4, "thucnews": 0.3}, 0.4  # the regressions' say on what other teachers have labelled, and on queries


class Places:
    """An encoder's vectors -> the directions that tell texts apart: centred, in their principal components, of unit length."""

    def __init__(self, vectors):
        vectors = vectors.astype(np.float32)
        self.centre = vectors.mean(0)
        _, axes = np.linalg.eigh(np.cov((vectors - self.centre).T))
        self.axes = axes[:, ::-1][:, :DIMS].astype(np.float32)

    def __call__(self, vectors):
        placed = (vectors - self.centre) @ self.axes
        return (placed / np.linalg.norm(placed, axis=1, keepdims=True)).astype(np.float16)


def queries(texts, count: int, rng):
    """What somebody may search for: one to three runs of one to three words of a text."""
    import jieba

    found = []
    for at in rng.integers(0, len(texts), count):
        words = [w for w in jieba.lcut(texts[at][:200]) if len(w) > 1 or w.isalnum()]
        runs = [words[i : i + rng.integers(1, 4)] for i in np.sort(rng.integers(0, max(1, len(words)), rng.integers(1, 4)))]
        query = rng.choice(JOINTS).join("".join(run) for run in runs)
        if len(query) > 1:
            found.append(query)
    return found


def passages(texts, count: int, rng):
    """Runs of characters, most of them as long as a title with a paragraph, from where a sentence begins; of long texts more."""
    found, lengths = [], np.array([len(text) for text in texts])
    for at in rng.choice(len(texts), count, p=lengths / lengths.sum()):
        text = texts[at]
        begins = [0, *(i + 1 for i, c in enumerate(text[:-SHORTEST_PASSAGE]) if c in "。！？")]
        start = rng.choice(begins)
        found.append(text[start : start + rng.integers(SHORTEST_PASSAGE, LONGEST_PASSAGE)])
    return found


@dataclass(frozen=True)
class Taught:
    """Titles whose labels teach a regression; `owner` numbers the title that a row is a form of."""

    block: slice
    labels: np.ndarray
    owner: np.ndarray
    classes: int
    strength: float

    def fit(self, places, rows=slice(None)):
        return LogisticRegression(C=self.strength, max_iter=300).fit(places[self.block][rows], self.labels[rows])


class Opinions:
    """Regressions on places: what the encoder, which nobody told of topics, makes of each topic."""

    def __init__(self, places, news: softlabels.News, thucnews_labels, seed: int):
        """`places` are those of the group's titles, in its order."""
        self.titles, self.seed = places.astype(np.float32), seed
        tnews, thucnews = len(news.tnews_texts), len(thucnews_labels)
        self.taught = {
            "tnews": Taught(slice(0, 2 * tnews), np.tile(news.tnews_labels, 2), np.tile(np.arange(tnews), 2), 15, 1.0),
            "thucnews": Taught(slice(len(places) - thucnews, len(places)), thucnews_labels, np.arange(thucnews), 10, 3.0),
        }
        self.fitted = {space: taught.fit(self.titles) for space, taught in self.taught.items()}

    def __call__(self, places):
        """Probabilities per space on texts whose topic did not teach it."""
        places = places.astype(np.float32)
        return {space: teacher.probabilities(self.fitted[space], places, taught.classes) for space, taught in self.taught.items()}

    def on_titles(self):
        """The same on the titles: on those that taught, by regressions that did not see them."""
        found = self(self.titles)
        for space, taught in self.taught.items():
            rows = self.titles[taught.block]

            def part(kept, asked):
                return teacher.probabilities(taught.fit(self.titles, kept), rows[asked], taught.classes)

            said = teacher.out_of_fold(part, taught.owner, taught.classes, FOLDS, self.seed)
            log.info("places say %s: %.3f", space, (said.argmax(1) == taught.labels).mean())
            found[space][taught.block] = said
        return found


class Abroad:
    """How far a political text tells of other countries: descriptions sort the clearest titles, a regression on these the others."""

    def __init__(self, vectors, places, described):
        """`vectors` and `places` of titles of 时政; `described` are the vectors of ABROAD, then of AT_HOME."""
        towards = described[: len(ABROAD)].mean(0) - described[len(ABROAD) :].mean(0)
        order = np.argsort(vectors @ towards)
        at_home = order[: max(1, round(SURELY_AT_HOME * len(order)))]
        abroad = order[-max(1, round(SURELY_ABROAD * len(order))) :]
        rows = np.concatenate([at_home, abroad])
        self.fitted = LogisticRegression(C=1.0, max_iter=300, class_weight="balanced").fit(places[rows].astype(np.float32), np.isin(rows, abroad))

    def __call__(self, places):
        """[rows], 0 to 1."""
        return self.fitted.predict_proba(places.astype(np.float32))[:, 1]


def take_opinions(group: softlabels.Group, opinions) -> None:
    """Mix `opinions` into the targets, where those say anything."""
    for space, said in opinions.items():
        rows = np.flatnonzero(group.weights[space] > 0)
        shares = 1 - OPINION_SHARES[space], OPINION_SHARES[space]
        group.targets[space][rows] = teacher.mixed((group.targets[space][rows], said[rows]), shares)


def run(data: Path, tokenizer, words: dict, before: Path, rows: Path, encode, seed: int, scale: float) -> None:
    """Write `rows`: the group of `before`, one of queries, and one of queries and passages without topics; every row with its place.

    `words` are the label words of the data sets; `encode` gives the encoder's vectors of rows of token ids.
    """
    (group,) = pickle.loads(before.read_bytes())
    news = softlabels.News(data, scale, seed)
    vectors = encode(group.ids)
    find = Places(vectors[: group.titles])
    group.places = find(vectors)
    _, thucnews, labels = crops.titles_of(data, news, scale)
    opinions = Opinions(group.places[: group.titles], news, labels, seed)
    on_titles, on_others = opinions.on_titles(), opinions(group.places[group.titles :])
    take_opinions(group, {space: np.vstack([said, on_others[space]]) for space, said in on_titles.items()})
    rng, cut = np.random.default_rng(seed), corpus.Words(tokenizer)
    political = group.titles - len(labels) + np.flatnonzero(labels == words["thucnews"].index("时政"))
    described = encode([cut(text)[0] for text in ABROAD + AT_HOME])
    abroad = Abroad(vectors[political], group.places[political], described)
    silent = group.weights[corpus.NEWS_SPACE] == 0
    joint.add(group, words, 2 * len(news.tnews_texts), len(news.free_texts), abroad(group.places))
    group.weights[corpus.NEWS_SPACE][silent] = 0

    count = lambda planned: max(40, round(planned * scale))

    def made(texts, repeats):
        found = [cut(text) for text in texts]
        one = softlabels.Group(corpus.NEWS_PROMPTS, [i for i, _ in found], [w for _, w in found], {}, {}, repeats, titles=0)
        one.places = find(encode(one.ids))
        return one

    tnews = softlabels.with_comma(news.tnews_texts + news.free_texts, news.tnews_keywords + news.free_keywords)
    from_tnews = queries(tnews, count(QUERIES // 4), rng)
    from_thucnews = queries(thucnews, count(QUERIES // 4), rng)
    asked = made(from_tnews + from_thucnews, np.full(len(from_tnews) + len(from_thucnews), QUERY_REPEATS))
    asked.targets = {space: said.astype(np.float32) for space, said in opinions(asked.places).items()}
    asked.weights = {space: np.full(len(asked.ids), QUERY_WEIGHT, np.float32) for space in asked.targets}
    joint.add(asked, words, 0, len(from_tnews), abroad(asked.places))

    _, long = corpus.pretraining_texts(data)
    from_long, parts = queries(long, count(QUERIES // 2), rng), passages(long, count(PASSAGES), rng)
    free = made(from_long + parts, np.repeat([QUERY_REPEATS, PASSAGE_REPEATS], [len(from_long), len(parts)]))
    rows.write_bytes(pickle.dumps([group, asked, free]))
    log.info("places of %d rows with topics, %d queries with topics, %d without, %d passages", len(group.ids), len(asked.ids), len(from_long), len(parts))
