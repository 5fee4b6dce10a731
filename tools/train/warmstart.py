"""Where pre-training starts: what a masked-language model of this size would spend most of its tokens to find.

Word embeddings are factors of the tokens' co-occurrence counts (positive pointwise mutual information). Positions are sines
and cosines in coordinates of their own, and the first layer's heads look at the neighbours: before such heads are there a
network knows which characters occur, but not which words they make.
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
# One head of the first layer for each: previous, next, one but previous, one but next.
NEIGHBOURS = (-1, 1, -2, 2)
FREQUENCIES = 24
PERIODS = (2.3, 40.0)
VALUE_STD = 0.0625


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


def turned(offset: int):
    """The matrix [2F, 2F] that takes the sines and cosines of a position to those of `offset` further on."""
    turns = 2 * np.pi * offset / np.geomspace(*PERIODS, FREQUENCIES)
    matrix = np.zeros((2 * FREQUENCIES, 2 * FREQUENCIES))
    for i, turn in enumerate(turns):
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    return torch.tensor(matrix, dtype=torch.float32)


def look_at_neighbours(model) -> None:
    """Positions in the first coordinates, which the words leave free, and heads in the first layer that read them."""
    shape, width = model.shape, 2 * FREQUENCIES
    size = shape.hidden_size // shape.num_attention_heads
    if size < width:
        log.info("heads of %d are too small to look at neighbours", size)
        return
    norm = TARGET_STD * shape.hidden_size**0.5
    angles = 2 * np.pi * np.arange(shape.max_position_embeddings)[:, None] / np.geomspace(*PERIODS, FREQUENCIES)
    waves = np.stack([np.cos(angles), np.sin(angles)], 2).reshape(len(angles), width) * norm / FREQUENCIES**0.5
    first = model.layers[0]
    with torch.no_grad():
        model.words.weight[:, :width] = 0
        model.positions.weight.zero_()
        model.positions.weight[:, :width] = torch.tensor(waves, dtype=torch.float32)
        for head, offset in zip(range(shape.num_attention_heads), NEIGHBOURS):
            rows = slice(head * size, head * size + width)
            first.query.weight[rows, :width] = turned(offset)
            first.key.weight[rows, :width] = torch.eye(width)
        torch.nn.init.normal_(first.value.weight, std=VALUE_STD)
        torch.nn.init.normal_(first.attention_output.weight, std=VALUE_STD)


def apply(model, rows, seed: int) -> None:
    start, bias = embeddings(rows, model.shape.vocab_size, model.shape.hidden_size, seed)
    with torch.no_grad():
        model.words.weight.copy_(start)
        model.head_bias.copy_(bias)
    look_at_neighbours(model)
