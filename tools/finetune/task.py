"""Documents under the taxonomy's prompt as tensors: the training loss of a batch and the labels that a model gives.

Owns prompting for many documents at once. Knows nothing of schedules or files.
"""

import torch
import torch.nn.functional as F

from tools.export.protocol import PLACEHOLDER, Taxonomy
from tools.export.tokenizer import plain_ids

# Beside the words of the label over the whole vocabulary, as the model card trains: the label among its rivals, of whatever length.
RIVALS_WEIGHT = 1.0
EVALUATION_TOKENS = 4096


class Task:
    """One taxonomy, one prompt, one tokenizer."""

    def __init__(self, tokenizer, taxonomy: Taxonomy, max_tokens: int, prompt: int = 0):
        before, after = taxonomy.prompts[prompt].split(PLACEHOLDER)
        self.head = [tokenizer.cls_token_id, *plain_ids(tokenizer, before)]
        self.after = plain_ids(tokenizer, after)
        self.pad, self.mask, self.end = tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.sep_token_id
        self.max_tokens = max_tokens
        self.tokenizer = tokenizer
        self.size = len(taxonomy.labels)
        self.words = {}  # number of masks -> (labels [words], tokens [words, masks])
        for index, label in enumerate(taxonomy.labels):
            for word in label.words:
                ids = plain_ids(tokenizer, word)
                self.words.setdefault(len(ids), []).append((index, ids))
        self.words = {n: (torch.tensor([i for i, _ in rows]), torch.tensor([ids for _, ids in rows])) for n, rows in self.words.items()}
        # A label is trained through its first word.
        self.trained = [plain_ids(tokenizer, label.words[0]) for label in taxonomy.labels]

    def encode(self, text: str) -> list:
        return plain_ids(self.tokenizer, text)

    def rows(self, bodies: list, masks: int):
        """(input ids, attention mask, first mask's position) of documents under the prompt."""
        head = [*self.head, *[self.mask] * masks, *self.after]
        room = self.max_tokens - len(head) - 1
        rows = [[*head, *body[:room], self.end] for body in bodies]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
        kept = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return ids, kept, len(self.head)

    def log_probs(self, model, bodies: list, masks: int) -> torch.Tensor:
        """[documents, masks, vocabulary], the head on the mask rows only."""
        ids, kept, first = self.rows(bodies, masks)
        hidden = model.bert(input_ids=ids, attention_mask=kept).last_hidden_state
        return model.cls(hidden[:, first : first + masks]).log_softmax(-1)

    def loss(self, model, bodies: list, labels: list) -> torch.Tensor:
        """The label's own word over the whole vocabulary, and the label among all labels, scored as the worker scores them."""
        scores, vocabulary = torch.full((len(bodies), self.size), -torch.inf), torch.zeros(())
        for masks in self.words:
            log_probs = self.log_probs(model, bodies, masks)
            scores = self.best(scores, log_probs, masks)
            rows = [row for row, label in enumerate(labels) if len(self.trained[label]) == masks]
            if rows:
                targets = torch.tensor([self.trained[labels[row]] for row in rows])
                vocabulary = vocabulary + F.nll_loss(log_probs[rows].flatten(0, 1), targets.flatten()) * len(rows) / len(labels)
        return vocabulary + RIVALS_WEIGHT * F.cross_entropy(scores, torch.tensor(labels))

    def best(self, scores: torch.Tensor, log_probs: torch.Tensor, masks: int) -> torch.Tensor:
        """`scores` [documents, labels] raised to the best word of this number of tokens: mean log p over its masks."""
        owners, tokens = self.words[masks]
        means = torch.stack([log_probs[:, m][:, tokens[:, m]] for m in range(masks)]).mean(0)
        return scores.scatter_reduce(1, owners.expand(len(scores), -1), means, "amax")

    @torch.no_grad()
    def predict(self, model, bodies: list) -> list:
        """The best label of each document, as the worker decides it (without a prior)."""
        model.eval()
        order = sorted(range(len(bodies)), key=lambda i: len(bodies[i]))
        said = [0] * len(bodies)
        for batch in self.batches(order, bodies):
            scores = torch.full((len(batch), self.size), -torch.inf)
            for masks in self.words:
                scores = self.best(scores, self.log_probs(model, [bodies[i] for i in batch], masks), masks)
            for i, label in zip(batch, scores.argmax(1).tolist()):
                said[i] = label
        return said

    def batches(self, order: list, bodies: list):
        batch = []
        for i in order:
            width = min(len(bodies[i]) + len(self.head) + len(self.after) + 5, self.max_tokens)
            if batch and (len(batch) + 1) * width > EVALUATION_TOKENS:
                yield batch
                batch = []
            batch.append(i)
        yield batch


def accuracy(said: list, wanted: list) -> float:
    return sum(a == b for a, b in zip(said, wanted)) / len(wanted)


def macro_f1(said: list, wanted: list) -> float:
    """Over the labels that occur among the wanted ones."""
    scores = []
    for label in sorted(set(wanted)):
        hits = sum(a == b == label for a, b in zip(said, wanted))
        scores.append(2 * hits / (said.count(label) + wanted.count(label)))
    return sum(scores) / len(scores)
