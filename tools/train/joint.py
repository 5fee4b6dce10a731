"""The rows of the last tuning also name one topic among all of both news label spaces, as the `news` taxonomy asks.

A row keeps the topics of its own data set. A topic that only the other data set knows takes part of its probability as far
as the other teacher sees it: a political title of THUCNews may be 国际 or 军事, an unlabelled title of TNEWS 社会 or
时政. Owns that rule; knows nothing of the loop.
"""

import logging
import pickle
from pathlib import Path

import numpy as np

from . import corpus, crops, softlabels

log = logging.getLogger("train")
LARGEST_WEIGHT = 3.0
# How much of a topic of the other data set counts, by the block that a row comes from.
FOREIGN_ON_LABELLED, FOREIGN_ON_FREE, FOREIGN_ON_THUCNEWS = 0.15, 0.6, 0.4


def space_words(words: dict) -> list:
    """Label words of the joint space: those of TNEWS, then those that THUCNews alone has."""
    return [*words["tnews"], *(w for w in words["thucnews"] if w not in words["tnews"])]


def own_topics(labels, words: list, joint: list):
    """Numbers in the joint space of `labels`, which number `words`; one for 电竞 and 游戏 alike (see `merged`)."""
    return merged(np.array([joint.index(word) for word in words])[labels], joint)


def merged(numbers, joint: list):
    """电竞 and 游戏 are one topic with two words: the number of the second for either."""
    return np.where(numbers == joint.index("电竞"), joint.index("游戏"), numbers)


def spread(targets, own: list, joint: list):
    """Targets [rows, own words] laid out over the joint words."""
    laid = np.zeros((len(targets), len(joint)), np.float32)
    laid[:, [joint.index(w) for w in own]] = targets
    return laid


def blend(own, foreign, known: list, joint: list, share):
    """`own` with room made for the topics outside `known`, each `share` times what `foreign` gives it.

    Neither of 电竞 and 游戏 is foreign to the other data set.
    """
    outside = [i for i, w in enumerate(joint) if w not in known and w not in ("电竞", "游戏")]
    extra = np.zeros_like(own)
    extra[:, outside] = share * foreign[:, outside]
    return own * (1 - extra.sum(1, keepdims=True)) + extra


def apart(targets, joint: list, abroad):
    """`targets` whose 时政 becomes 国际 as far as a row tells of abroad (`abroad`, [rows], 0 to 1).

    THUCNews has no 国际: three quarters of its 时政 happened in other countries.
    """
    moved, told = targets.copy(), targets[:, joint.index("时政")] * abroad
    moved[:, joint.index("时政")] -= told
    moved[:, joint.index("国际")] += told
    return moved


def add(group: softlabels.Group, words: dict, labelled: int, free: int, abroad=0.0) -> None:
    """Give `group` the joint targets. Its first `labelled` rows are TNEWS with labels, the next `free` without; then THUCNews.

    `abroad` says how far each row tells of other countries (see `apart`).
    """
    joint = space_words(words)
    tnews = spread(group.targets["tnews"], words["tnews"], joint)
    thucnews = spread(group.targets["thucnews"], words["thucnews"], joint)
    first, second = slice(0, labelled), slice(labelled, labelled + free)
    third = slice(labelled + free, None)
    made = np.zeros_like(tnews)
    made[first] = blend(tnews[first], thucnews[first], words["tnews"], joint, FOREIGN_ON_LABELLED)
    made[second] = blend(tnews[second], thucnews[second], words["tnews"], joint, FOREIGN_ON_FREE)
    # Rows without an opinion in the TNEWS space hold an even one, which says nothing.
    opinion = np.where(group.weights["tnews"][third, None] > 0, tnews[third], 0)
    made[third] = blend(thucnews[third], opinion, words["thucnews"], joint, FOREIGN_ON_THUCNEWS)
    group.targets[corpus.NEWS_SPACE] = apart(made / made.sum(1, keepdims=True), joint, abroad).astype(np.float32)
    strongest = np.maximum(group.weights["tnews"], group.weights["thucnews"])
    group.weights[corpus.NEWS_SPACE] = (strongest * evened(group.targets[corpus.NEWS_SPACE], group.repeats)).astype(np.float32)


def evened(targets, repeats):
    """Weights [rows] under which topics count more evenly: THUCNews has ten times the rows of TNEWS.

    The square root of the inverse share, at most LARGEST_WEIGHT; one on average.
    """
    share = (targets * repeats[:, None]).sum(0) / repeats.sum()
    weights = targets @ np.minimum(LARGEST_WEIGHT, 1 / np.sqrt(share * targets.shape[1]))
    return weights / np.average(weights, weights=repeats)


def lean(before: Path, rows: Path, data: Path, scale: float, seed: int) -> None:
    """Write `rows`: those of `before` with more of TNEWS and fewer crops an epoch."""
    news = softlabels.News(data, scale, seed)
    (group,) = pickle.loads(before.read_bytes())
    titles = more_tnews(group, news) + len(crops.titles_of(data, news, scale)[1])
    group.repeats[titles:] *= 0.5
    rows.write_bytes(pickle.dumps([group]))


def more_tnews(group: softlabels.Group, news) -> int:
    """Let rows of TNEWS come more often an epoch; returns the number of its rows, behind which those of THUCNews begin."""
    labelled, free = 2 * len(news.tnews_texts), len(news.free_texts)
    group.repeats[:labelled] *= 1.3
    group.repeats[labelled : labelled + free] = 1.6
    return labelled + free


def calm(before: Path, rows: Path, data: Path, scale: float, seed: int) -> None:
    """Write `rows`: those of `before` with more of TNEWS, fewer crops and few bags an epoch.

    Bags speak of THUCNews alone: of the other topics they are noise beside the titles.
    """
    news = softlabels.News(data, scale, seed)
    (group,) = pickle.loads(before.read_bytes())
    group.repeats[more_tnews(group, news) :] *= 0.7
    bags = slice(-crops.bag_count(scale), None)
    group.repeats[bags] = 0.15
    for space in ("tnews", corpus.NEWS_SPACE):
        group.weights[space][bags] = 0
    rows.write_bytes(pickle.dumps([group]))


def run(data: Path, words: dict, before: Path, rows: Path, scale: float, seed: int) -> None:
    """Write `rows`: the group of `before` with the joint space."""
    news = softlabels.News(data, scale, seed)
    (group,) = pickle.loads(before.read_bytes())
    add(group, words, 2 * len(news.tnews_texts), len(news.free_texts))
    rows.write_bytes(pickle.dumps([group]))
    shares = group.targets[corpus.NEWS_SPACE].mean(0)
    log.info("joint %s", " ".join(f"{w}={s:.3f}" for w, s in zip(space_words(words), shares)))
