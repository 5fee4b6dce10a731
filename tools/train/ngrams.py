"""What the counting teachers know of each token: the weights of the n-grams and words that cover it.

A small student that sees one label a title never learns the counts behind it. Here every token has a target of its own, about a hundred
numbers: how much the n-grams that cover it speak for each topic, and where they lie in the latent space. A layer in the middle learns them,
and what is left for the layers above is to add up. Owns the table and the targets; knows nothing of the loop.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

from . import corpus, teacher

LATENT = 60
LONGEST = 3
LARGEST = 5.0  # of a target, in standard deviations: a rare n-gram says a lot about few titles
LABELLED_WEIGHT = 3.0  # of a labelled title of TNEWS beside one that a teacher labelled
SCALE_TOKENS = 200_000


@dataclass
class Table:
    """Number, inverse document frequency and weights [features, dims] of every n-gram of characters and every word."""

    characters: dict
    words: dict
    idf: np.ndarray
    weights: np.ndarray


def build(news, thucnews, opinions, seed: int) -> Table:
    """`thucnews` are (texts, labels), `opinions` [rows, 15] those on the unlabelled titles of TNEWS."""
    texts, labels = thucnews
    lower = lambda titles, keywords: [f"{t} {k}".lower() for t, k in zip(titles, keywords)]
    labelled, free = lower(news.tnews_texts, news.tnews_keywords), lower(news.free_texts, news.free_keywords)
    titles = [t.lower() for t in texts]
    features = teacher.Features(titles + labelled + free, seed)
    counted = features(titles).sparse
    linear = LogisticRegression(C=10, max_iter=60).fit(counted, labels)
    known = np.zeros((10, counted.shape[1]))
    known[linear.classes_] = linear.coef_
    tnews = vstack([features(labelled).sparse, features(free).sparse]).tocsr()
    soft = np.vstack([np.eye(15)[news.tnews_labels] * LABELLED_WEIGHT, opinions]).astype(np.float32)
    parts = [teacher.bayes(counted, labels, 10, 0.3), known, teacher.soft_bayes(tnews, soft, 1.0), features.latent.components_[:LATENT]]
    idf = np.concatenate([features.characters.idf_, features.words.idf_]).astype(np.float32)
    return Table(features.characters.vocabulary_, features.words.vocabulary_, idf, np.vstack(parts).T.astype(np.float32))


def table(path: Path, make) -> Table:
    """The table kept in `path`, made once."""
    if not path.exists():
        path.write_bytes(pickle.dumps(make()))
    return pickle.loads(path.read_bytes())


class Targets:
    """Targets of every token of a group's rows."""

    def __init__(self, known: Table, tokenizer, group):
        pieces = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
        self.pieces = [piece.removeprefix("##") for piece in pieces]
        self.known, self.dims = known, known.weights.shape[1]
        found = [], [], []
        self.starts = np.cumsum([0] + [len(ids) for ids in group.ids])
        for start, ids, words in zip(self.starts, group.ids, group.words):
            for token, feature, weight in self.covering(ids, words):
                for part, value in zip(found, (start + token, feature, weight)):
                    part.append(value)
        tokens, features, weights = found
        shape = (int(self.starts[-1]), len(known.idf))
        self.covered = csr_matrix((np.array(weights, np.float32), (np.array(tokens, np.int32), np.array(features, np.int32))), shape=shape)
        self.scale = (self.covered[:SCALE_TOKENS] @ known.weights).std(0) + 1e-6

    def covering(self, ids, words):
        """(token, feature, its share of the feature's weight), for each n-gram of characters and each word."""
        parts = [self.pieces[i] if i != corpus.UNK else "\ufffd" for i in ids]
        text, owner = "".join(parts), [at for at, part in enumerate(parts) for _ in part]
        for length in range(1, LONGEST + 1):
            for start in range(len(text) - length + 1):
                feature = self.known.characters.get(text[start : start + length])
                if feature is not None:
                    yield from self.shared(feature, set(owner[start : start + length]))
        ends = [at for at in range(1, len(ids)) if words[at] != words[at - 1]] + [len(ids)]
        for start, end in zip([0, *ends], ends):
            feature = self.known.words.get("".join(parts[start:end]))
            if feature is not None:
                yield from self.shared(len(self.known.characters) + feature, range(start, end))

    def shared(self, feature, tokens):
        for token in tokens:
            yield token, feature, self.known.idf[feature] / len(tokens)

    def __call__(self, rows, first: int, longest: int):
        """(targets [rows, longest, dims], which tokens have one) of texts that begin at token `first`."""
        values, known = np.zeros((len(rows), longest, self.dims), np.float32), np.zeros((len(rows), longest), bool)
        for at, row in enumerate(rows):
            known[at, first : first + self.starts[row + 1] - self.starts[row]] = True
        tokens = np.concatenate([np.arange(self.starts[row], self.starts[row + 1]) for row in rows])
        values[known] = np.clip(self.covered[tokens] @ self.known.weights / self.scale, -LARGEST, LARGEST)
        return values, known
