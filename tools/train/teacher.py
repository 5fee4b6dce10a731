"""The counting teacher: naive Bayes, latent semantic analysis and logistic regression on character and word n-grams.

Owns soft labels for titles in the label spaces of TNEWS and THUCNews. It reads the keywords that TNEWS has beside a
title (the student sees the title alone). Knows nothing of the network.
"""

import logging
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, hstack
from scipy.special import log_softmax, softmax
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

log = logging.getLogger(__name__)
FLOOR = 1e-6
COMPONENTS = 200


@dataclass(frozen=True)
class Counted:
    """A set of texts as n-gram weights and as latent components."""

    sparse: csr_matrix
    dense: np.ndarray


class Features:
    """Character 1-3-grams and jieba words, fitted on all text without labels."""

    def __init__(self, texts, seed: int):
        import jieba

        jieba.setLogLevel(logging.WARNING)
        options = {"sublinear_tf": True, "min_df": 2, "dtype": np.float32}
        self.characters = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), **options)
        self.words = TfidfVectorizer(analyzer=lambda t: [w for w in jieba.lcut(t) if w.strip()], **options)
        both = hstack([self.characters.fit_transform(texts), self.words.fit_transform(texts)]).tocsr()
        components = min(COMPONENTS, min(both.shape) - 1)
        self.latent = TruncatedSVD(components, n_iter=3, random_state=seed).fit(both)

    def __call__(self, texts) -> Counted:
        both = hstack([self.characters.transform(texts), self.words.transform(texts)]).tocsr()
        return Counted(both, normalize(self.latent.transform(both)))


def bayes(features, labels, classes: int, alpha: float):
    """Weights [classes, features] of a complement naive Bayes classifier."""
    return soft_bayes(features, np.eye(classes, dtype=np.float32)[labels], alpha)


def soft_bayes(features, targets, alpha: float):
    """The same for soft labels [rows, classes]."""
    counts = np.asarray((features.T @ targets).T)
    others = counts.sum(0, keepdims=True) - counts + alpha
    weights = -np.log(others / others.sum(1, keepdims=True))
    return weights - weights.mean(0)


def probabilities(regression, features, classes: int):
    """predict_proba over all classes, nought for those that a small sample did not hold."""
    found = np.zeros((features.shape[0], classes))
    found[:, regression.classes_] = regression.predict_proba(features)
    return found


class ThucnewsTeacher:
    """Soft labels in the ten classes: naive Bayes and logistic regression on n-grams."""

    def __init__(self, counted: Counted, labels, classes: int = 10):
        self.classes = classes
        self.weights = bayes(counted.sparse, labels, classes, 0.3)
        self.linear = LogisticRegression(C=10, max_iter=40).fit(counted.sparse, labels)
        self.latent = LogisticRegression(C=10, max_iter=200).fit(counted.dense, labels)

    def __call__(self, counted: Counted):
        parts = (
            softmax(4 * (counted.sparse @ self.weights.T), axis=1),
            probabilities(self.linear, counted.sparse, self.classes),
            probabilities(self.latent, counted.dense, self.classes),
        )
        return mixed(parts, (0.4, 0.45, 0.15))


def mixed(parts, shares):
    """Geometric mean of distributions, renormalised."""
    return softmax(sum(share * np.log(part + FLOOR) for part, share in zip(parts, shares)), axis=1)


def soft_regression(features, targets, weights, penalty: float = 3e-6, iterations: int = 60):
    """Weights [features, classes] of a multinomial regression on soft labels, each row counted as `weights` says."""
    shape, share = (features.shape[1], targets.shape[1]), (weights / weights.sum())[:, None]

    def loss(flat):
        now = flat.reshape(shape)
        logs = log_softmax(features @ now, axis=1)
        slope = features.T @ (share * (np.exp(logs) - targets)) + penalty * now
        return -(share * targets * logs).sum() + penalty / 2 * (now * now).sum(), slope.ravel()

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    return found.x.reshape(shape)


class SoftTeacher:
    """Naive Bayes and a regression in equal parts, taught by soft labels [rows, classes]."""

    def __init__(self, features, targets, weights):
        kept = np.flatnonzero(weights > 0)
        features, targets, weights = features[kept].astype(np.float64), targets[kept], weights[kept]
        self.classes = targets.shape[1]
        self.bayes = soft_bayes(features, targets * weights[:, None], 0.3)
        self.linear = soft_regression(features, targets, weights)

    def __call__(self, features):
        return mixed((softmax(4 * (features @ self.bayes.T), axis=1), softmax(features @ self.linear, axis=1)), (0.5, 0.5))


class TnewsTeacher:
    """Soft labels in the fifteen classes: naive Bayes, and a regression on latent components and THUCNews opinions."""

    def __init__(self, titles: Counted, with_keywords: Counted, labels, thucnews: ThucnewsTeacher, classes: int = 15):
        self.thucnews, self.classes = thucnews, classes
        self.weights = bayes(with_keywords.sparse, labels, classes, 1.0)
        rows = np.vstack([self._dense(titles), self._dense(with_keywords)])
        self.linear = LogisticRegression(C=1, max_iter=500).fit(rows, np.concatenate([labels, labels]))

    def _dense(self, counted: Counted):
        latent = probabilities(self.thucnews.latent, counted.dense, self.thucnews.classes)
        bayesian = log_softmax(2 * (counted.sparse @ self.thucnews.weights.T), axis=1)
        return np.hstack([counted.dense, 0.3 * np.log(latent + FLOOR), 0.3 * np.maximum(bayesian, np.log(FLOOR))])

    def __call__(self, counted: Counted):
        parts = (
            softmax(4 * (counted.sparse @ self.weights.T), axis=1),
            probabilities(self.linear, self._dense(counted), self.classes),
        )
        return mixed(parts, (0.5, 0.5))


def take(counted: Counted, rows) -> Counted:
    return Counted(counted.sparse[rows], counted.dense[rows])


def out_of_fold(build, owner, classes: int, folds: int, seed: int):
    """Opinions on training rows by teachers that did not see them: `build(kept, asked)` gives those on `asked`.

    `owner` numbers the title that each row is a form of; all forms of one are in one fold.
    """
    part = (np.random.default_rng(seed).permutation(owner.max() + 1) % folds)[owner]
    opinions = np.zeros((len(owner), classes))
    for fold in range(folds):
        kept, asked = np.flatnonzero(part != fold), np.flatnonzero(part == fold)
        opinions[asked] = build(kept, asked)
    return opinions
