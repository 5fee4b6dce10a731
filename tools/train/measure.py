"""Scores of a network in PyTorch: accuracy through the first prompt, and of nearest neighbours.

Owns inference of whole data sets in training. The scores that count come from `tcbert-worker evaluate`.
"""

import numpy as np
import torch

from . import corpus, joint, model as net
from .tune import Prompt, label_scores, label_tokens

BATCH_ROWS = 64
TEXT_TOKENS = 200


@torch.no_grad()
def infer(model, tokenizer, texts, prompt_text, spaces, words, half=True):
    """(scores per space [texts, classes], unit embeddings [texts, hidden]) of prompted texts."""
    training = model.training
    model.eval()
    prompt, tokens = Prompt(tokenizer, prompt_text), label_tokens(tokenizer, {s: words[s] for s in spaces})
    rows = [prompt.head + e.ids[:TEXT_TOKENS] + [corpus.SEP] for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    order = np.argsort([len(r) for r in rows], kind="stable")
    scores = {s: np.zeros((len(rows), len(words[s]))) for s in spaces}
    embeddings = np.zeros((len(rows), model.shape.hidden_size))
    for start in range(0, len(order), BATCH_ROWS):
        chosen = order[start : start + BATCH_ROWS]
        inputs = torch.zeros(len(chosen), max(len(rows[i]) for i in chosen), dtype=torch.long)
        for k, i in enumerate(chosen):
            inputs[k, : len(rows[i])] = torch.tensor(rows[i])
        mask = inputs != corpus.PAD
        with torch.autocast("cpu", torch.bfloat16, enabled=half and net.HALF):
            hidden = model.encode(inputs, mask)
            at_masks = model.transform(hidden[:, prompt.first_mask : prompt.first_mask + 2])
        for s in spaces:
            scores[s][chosen] = label_scores(model, at_masks.float(), tokens[s]).numpy()
        embeddings[chosen] = net.pool(hidden, mask).numpy()
    model.train(training)
    return scores, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def nearest(reference, reference_labels, asked, labels) -> float:
    """Accuracy of the label of the nearest reference row by cosine."""
    return float((reference_labels[(asked @ reference.T).argmax(1)] == labels).mean())


ARTICLES, ARTICLE_TITLES = 600, 4


def articles(rows: corpus.Labelled, seed: int = 0) -> corpus.Labelled:
    """Several titles of one topic, joined: what a label space must also stand is a text longer than a title."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(rows.labels, ARTICLES)
    texts = ["。".join(rows.texts[i] for i in rng.choice(np.flatnonzero(rows.labels == label), ARTICLE_TITLES)) for label in labels]
    return corpus.Labelled(texts, labels, rows.words)


class HeldOut:
    """Measures a network on the rows that tuning has not seen."""

    def __init__(self, data, tokenizer, words, sets, scale=1.0):
        self.tokenizer, self.words = tokenizer, words
        keep = max(1, round(1 / scale / 20))
        self.sets = {name: corpus.every(rows, keep) for name, rows in sets.items()}
        self.reference = corpus.every(corpus.read_labelled(data, "tnews", "train_few_all"), keep)

    def __call__(self, model) -> str:
        found, embeddings = {}, {}
        for name, rows in self.sets.items():
            scores, embeddings[name] = self._infer(model, rows, name)
            found[name] = float((scores[name].argmax(1) == rows.labels).mean())
            if corpus.NEWS_SPACE in self.words:
                joined = articles(rows)
                found[f"{name}-in-news"] = self._in_news(scores, rows)
                found[f"{name}-articles-in-news"] = self._in_news(self._infer(model, joined, name)[0], joined)
        _, reference = self._infer(model, self.reference, "tnews")
        near = nearest(reference, self.reference.labels, embeddings["tnews"], self.sets["tnews"].labels)
        return " ".join(f"{k}={v:.4f}" for k, v in {**found, "nearest": near}.items())

    def _infer(self, model, rows, name):
        """Scores in the rows' own space and the joint one, where there is one, and embeddings."""
        spaces = [space for space in (name, corpus.NEWS_SPACE) if space in self.words]
        return infer(model, self.tokenizer, rows.texts, corpus.NEWS_PROMPTS[0], spaces, self.words)

    def _in_news(self, scores, rows) -> float:
        """Accuracy among the topics of both data sets."""
        all_words = self.words[corpus.NEWS_SPACE]
        said = joint.merged(scores[corpus.NEWS_SPACE].argmax(1), all_words)
        own = joint.own_topics(rows.labels, rows.words, all_words)
        # What THUCNews files under 时政 happened in other countries for the most part.
        abroad = (own == all_words.index("时政")) & (said == all_words.index("国际"))
        return float(((said == own) | abroad).mean())
