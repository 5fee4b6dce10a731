"""Word embeddings for the first step of pre-training: factors of the tokens' co-occurrence counts.

A masked-language model of this size spends millions of tokens before it leaves the unigram plateau. A singular value
decomposition of positive pointwise mutual information takes a minute and starts it beyond.
"""

import logging

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

log = logging.getLogger(__name__)
WINDOW = 5
SMOOTHING = 0.75
TARGET_STD = 0.04


def counts(rows, vocabulary: int):
    """Symmetric co-occurrence counts within WINDOW, weighted by 1/distance, and token frequencies."""
    flat = np.concatenate([np.concatenate([ids, np.full(WINDOW, -1, ids.dtype)]) for ids in rows])
    total = sparse.csr_matrix((vocabulary, vocabulary), dtype=np.float64)
    for distance in range(1, WINDOW + 1):
        left, right = flat[:-distance], flat[distance:]
        both = (left >= 0) & (right >= 0)
        weight = np.full(int(both.sum()), 1.0 / distance)
        total = total + sparse.coo_matrix((weight, (left[both], right[both])), shape=total.shape).tocsr()
    return total + total.T, np.bincount(flat[flat >= 0], minlength=vocabulary)


def embeddings(rows, vocabulary: int, hidden: int, seed: int):
    """([vocabulary, hidden] start of the word embeddings, [vocabulary] log frequencies for the decoder's bias)."""
    pairs, frequency = counts(rows, vocabulary)
    pairs = pairs.tocoo()
    row_sum = np.asarray(pairs.sum(1)).ravel()
    smoothed = row_sum**SMOOTHING
    smoothed /= smoothed.sum()
    value = np.log(pairs.data / row_sum[pairs.row] / smoothed[pairs.col])
    keep = value > 0
    ppmi = sparse.csr_matrix((value[keep], (pairs.row[keep], pairs.col[keep])), shape=pairs.shape)
    u, s, _ = randomized_svd(ppmi, hidden, n_iter=3, random_state=seed)
    table = u * np.sqrt(s)
    seen = frequency >= 3
    rng = np.random.default_rng(seed)
    start = rng.normal(0, TARGET_STD, (vocabulary, hidden))
    norms = np.linalg.norm(table[seen], axis=1, keepdims=True)
    start[seen] = table[seen] / np.maximum(norms, 1e-6) * TARGET_STD * np.sqrt(hidden)
    # A random rotation spreads the leading factors over all coordinates, so that heads and layer norms start even.
    rotation, _ = np.linalg.qr(rng.normal(size=(hidden, hidden)))
    start[seen] = start[seen] @ rotation
    bias = np.log((frequency + 0.5) / (frequency.sum() + 0.5 * vocabulary))
    log.info("warm start tokens=%d seen=%d pairs=%d", int(frequency.sum()), int(seen.sum()), ppmi.nnz)
    return torch.tensor(start, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)


def apply(model, rows, seed: int) -> None:
    start, bias = embeddings(rows, model.shape.vocab_size, model.shape.hidden_size, seed)
    with torch.no_grad():
        model.words.weight.copy_(start)
        model.head_bias.copy_(bias)
