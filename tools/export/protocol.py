"""TCBert's protocol over transformers, plainly and slowly: what the worker's answers are compared with.

Owns prompting, scoring and pooling as the paper describes them, one document at a time, without padding. Written apart from the
worker and with none of its shortcuts (full logits of every position, one pass per document), so that an error must be made twice to
go unseen. A `forward` is any function that maps (input ids, attention mask) [batch, tokens] to (log probabilities, hidden states).
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .tokenizer import plain_ids

EMBEDDING_MASKS = 2
PLACEHOLDER = "{label}"


@dataclass(frozen=True)
class Label:
    name: str
    words: tuple


@dataclass(frozen=True)
class Taxonomy:
    name: str
    prompts: tuple
    labels: tuple
    temperature: float = 1.0
    calibration: bool = False

    @staticmethod
    def read(path: Path) -> "Taxonomy":
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        labels = tuple(Label(label["name"], tuple(label["words"])) for label in table["labels"])
        return Taxonomy(table["name"], tuple(table["prompts"]), labels, float(table.get("temperature", 1.0)), bool(table.get("calibration", False)))


@dataclass(frozen=True)
class Encoded:
    """One document under one prompt with a number of masks."""

    input_ids: list
    mask_positions: list
    truncated: bool


def encode(tokenizer, prompt: str, masks: int, text: str, max_tokens: int) -> Encoded:
    """[CLS] prompt text [SEP]; what does not fit is cut off the text's end."""
    before, after = prompt.split(PLACEHOLDER)
    head = [tokenizer.cls_token_id] + plain_ids(tokenizer, before)
    positions = list(range(len(head), len(head) + masks))
    head += [tokenizer.mask_token_id] * masks + plain_ids(tokenizer, after)
    body = plain_ids(tokenizer, text)
    room = max_tokens - len(head) - 1
    if room < 0:
        raise ValueError(f"the prompt alone has more than {max_tokens} tokens")
    return Encoded(head + body[:room] + [tokenizer.sep_token_id], positions, len(body) > room)


def torch_forward(model):
    """The reference: transformers' masked-language model in eval mode, log-softmax over the whole vocabulary."""

    def forward(ids, mask):
        with torch.no_grad():
            out = model(input_ids=torch.as_tensor(ids), attention_mask=torch.as_tensor(mask), output_hidden_states=True)
        return out.logits.log_softmax(-1).numpy(), out.hidden_states[-1].numpy()

    return forward


@dataclass
class Answer:
    """What the protocol says of one document; `scores` and `probabilities` in the taxonomy's order."""

    passes: dict
    truncated: bool
    scores: np.ndarray
    best_words: list
    probabilities: np.ndarray
    embedding: np.ndarray

    @property
    def ranking(self) -> list:
        """Indices of the labels, the most probable first; equal ones stay in the taxonomy's order."""
        return sorted(range(len(self.probabilities)), key=lambda i: -self.probabilities[i])


class Reference:
    """Tags documents one at a time."""

    def __init__(self, forward, tokenizer, taxonomy: Taxonomy, max_tokens: int, prompt: str | None = None):
        self.forward, self.tokenizer, self.taxonomy, self.max_tokens = forward, tokenizer, taxonomy, max_tokens
        self.prompt = prompt or taxonomy.prompts[0]
        self.word_ids = [[plain_ids(tokenizer, word) for word in label.words] for label in taxonomy.labels]
        self.mask_counts = sorted({len(ids) for words in self.word_ids for ids in words})
        self.prior = self._scores(self._passes(""))[0] if taxonomy.calibration else np.zeros(len(taxonomy.labels))

    def tag(self, text: str) -> Answer:
        passes = self._passes(text)
        scores, best = self._scores(passes)
        encoded, _, hidden = passes[EMBEDDING_MASKS]
        mean = hidden.astype(np.float64).mean(0)  # without padding every position counts
        return Answer(
            passes={masks: passes[masks][0] for masks in passes},
            truncated=encoded.truncated,
            scores=scores,
            best_words=best,
            probabilities=softmax((scores - self.prior) / self.taxonomy.temperature),
            embedding=mean / np.linalg.norm(mean),
        )

    def _passes(self, text: str) -> dict:
        """{mask count: (encoded, log probabilities [tokens, words], hidden states [tokens, hidden])}"""
        done = {}
        for masks in sorted({*self.mask_counts, EMBEDDING_MASKS}):
            encoded = encode(self.tokenizer, self.prompt, masks, text, self.max_tokens)
            log_probs, hidden = self.forward([encoded.input_ids], [[1] * len(encoded.input_ids)])
            done[masks] = (encoded, log_probs[0], hidden[0])
        return done

    def _scores(self, passes: dict):
        """Each label's best word: the mean of log p over its own mask positions."""
        scores, best = [], []
        for label, words in zip(self.taxonomy.labels, self.word_ids):
            means = []
            for ids in words:
                encoded, log_probs, _ = passes[len(ids)]
                means.append(np.mean([log_probs[position, token] for position, token in zip(encoded.mask_positions, ids)], dtype=np.float64))
            winner = int(np.argmax(means))
            scores.append(means[winner])
            best.append(label.words[winner])
        return np.array(scores), best


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max())
    return shifted / shifted.sum()
