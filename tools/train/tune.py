"""Stage 3: prompt tuning, distillation and contrast in one loop.

Each batch is one forward pass of prompted texts. Losses: soft labels over the label words at the two masks, in every
label space that the batch has targets for; the same soft labels on cosine prototypes of the pooled embedding, and
TCBert's contrast between pairs; masked-language modelling of the text; what n-grams say of each token (ngrams.py), learnt by the second
layer. Weights are averaged (EMA). Owns the loop, its schedule, its checkpoints.
"""

import logging
import pickle
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import corpus, model as net, ngrams
from .likeness import Likeness
from .pretrain import mask_words

__all__ = ["Recipe", "replace", "run"]

log = logging.getLogger(__name__)
SAVE_SECONDS = 150
BATCH_ROWS = 64
TEMPERATURE = 0.1
SURE = 0.5
JOINED_TOKENS = 120
GRAMS_LAYER = 1
MARKS, MARKED = "。。。，！？", 0.75  # what ends the titles of an article, and how often


@dataclass(frozen=True)
class Recipe:
    """Weights of the losses and the schedule."""

    steps: int = 4000
    peak: float = 5e-4
    dropout: float = 0.1
    masked_share: float = 0.1
    language: float = 0.0
    prototypes: float = 0.4
    contrast: float = 0.15
    average: float = 0.998
    second_prompt: float = 0.15
    grams: float = 0.0  # of the targets of each token
    places: float = 0.0  # of where the sentence encoder puts a text
    joined: float = 0.0  # share of the batches whose rows are several titles of one topic, as long as a short article


class Prompt:
    """Token ids around the two masks of a prompt."""

    def __init__(self, tokenizer, text: str):
        before, after = (tokenizer.encode(part, add_special_tokens=False).ids for part in text.split(corpus.LABELS))
        self.head = [corpus.CLS, *before, corpus.MASK, corpus.MASK, *after]
        self.first_mask = 1 + len(before)


class Heads(nn.Module):
    """Class prototypes of the embedding; used in training only."""

    def __init__(self, classes: dict, hidden: int):
        super().__init__()
        self.prototypes = nn.ParameterDict({k: nn.Parameter(torch.randn(n, hidden)) for k, n in classes.items()})

    def forward(self, embedding, space):
        return F.linear(F.normalize(embedding, dim=1), F.normalize(self.prototypes[space], dim=1)) / TEMPERATURE


def label_tokens(tokenizer, words: dict) -> dict:
    """Token ids [classes, 2] of each label space; every label word has two tokens."""
    return {
        name: torch.tensor([tokenizer.encode(w, add_special_tokens=False).ids for w in table]) for name, table in words.items()
    }


def label_scores(model, hidden_rows, tokens):
    """Mean logit of the two label tokens: [batch, classes]. Equals the mean log probability up to a constant per row."""
    table, bias = model.words.weight, model.head_bias
    scores = [F.linear(hidden_rows[:, m], table[tokens[:, m]], bias[tokens[:, m]]) for m in (0, 1)]
    return (scores[0].float() + scores[1].float()) / 2


def epoch_batches(groups, rng):
    """(group number, row numbers) of one pass, rows of like length together, rows repeated as their group says."""
    batches = []
    for number, group in enumerate(groups):
        times = np.floor(group.repeats + rng.random(len(group.repeats))).astype(int)
        rows = np.repeat(np.arange(len(times)), times)
        rng.shuffle(rows)
        lengths = np.array([len(group.ids[r]) for r in rows]) + rng.random(len(rows)) * 3
        # Sort within pools so that batches stay mixed in everything but length.
        pool = BATCH_ROWS * 50
        for start in range(0, len(rows), pool):
            inside = rows[start : start + pool][np.argsort(lengths[start : start + pool])]
            batches += [(number, inside[i : i + BATCH_ROWS]) for i in range(0, len(inside), BATCH_ROWS)]
    batches = [b for b in batches if len(b[1]) >= 8]
    rng.shuffle(batches)
    return batches


def collate(group, rows, prompt, share, rng):
    longest = max(len(group.ids[r]) for r in rows) + len(prompt.head) + 1
    inputs = np.full((len(rows), longest), corpus.PAD, np.int64)
    asked = np.full((len(rows), longest), -100, np.int64)
    for i, r in enumerate(rows):
        ids, at = group.ids[r], len(prompt.head)
        inputs[i, :at] = prompt.head
        if len(ids):
            masked, target = mask_words(ids, group.words[r], rng, share)
            inputs[i, at : at + len(ids)] = masked
            asked[i, at : at + len(ids)] = target
        inputs[i, at + len(ids)] = corpus.SEP
    return torch.from_numpy(inputs), torch.from_numpy(asked)


class Topics:
    """Titles of a group by the topic of `space` that they surely have."""

    def __init__(self, group, space: str, marks):
        """`marks` are the tokens of sentence marks."""
        self.marks = marks
        table = group.targets[space][: group.titles]
        topic = np.where(table.max(1) >= SURE, table.argmax(1), -1)
        self.rows = {t: np.flatnonzero(topic == t) for t in np.unique(topic) if t >= 0}

    def join(self, group, rng):
        """A group of half a batch: titles alone, or joined with one to three others of their topic; each topic as often as any.

        A title alone beside an article of its topic is what a search is. Left to chance, articles would be of the topics of THUCNews
        alone; made of crops and bags, they would be of no topic.
        """
        topics = list(self.rows)
        made = replace(group, ids=[], words=[])
        members = []
        for topic in rng.choice(len(topics), BATCH_ROWS // 2):
            chosen = rng.choice(self.rows[topics[topic]], rng.integers(1, 5))
            parts = [part for number in chosen for part in ((group.ids[number], group.words[number]), self.mark(rng))]
            made.ids.append(np.concatenate([ids for ids, _ in parts])[:JOINED_TOKENS])
            owners = np.cumsum([0] + [words.max(initial=-1) + 1 for _, words in parts])
            made.words.append(np.concatenate([words + owner for (_, words), owner in zip(parts, owners)])[:JOINED_TOKENS])
            members.append(chosen)
        made.targets = {k: np.stack([table[m].mean(0) for m in members]) for k, table in group.targets.items()}
        made.weights = {k: np.stack([table[m].mean() for m in members]) for k, table in group.weights.items()}
        if group.places is not None:
            means = np.stack([group.places[m].astype(np.float32).mean(0) for m in members])
            made.places = means / np.linalg.norm(means, axis=1, keepdims=True)
        return made

    def mark(self, rng):
        """(ids, words) of a sentence mark or of nothing.

        Titles hardly have a full stop, and where they do it is a poem's: without any in articles, every text with full stops is 文化.
        """
        ids = [rng.choice(self.marks)] if rng.random() < MARKED else []
        return np.array(ids, np.int32), np.arange(len(ids), dtype=np.int32)


def soft_cross_entropy(scores, targets, weights):
    return (-(targets * F.log_softmax(scores, 1)).sum(1) * weights).mean()


def contrast(embedding, targets):
    """Pairs are near as far as their soft labels agree."""
    unit = F.normalize(embedding, dim=1)
    near = unit @ unit.t() / TEMPERATURE
    alike = sum(t @ t.t() for t in targets)
    eye = torch.eye(len(unit), dtype=torch.bool)
    near, alike = near.masked_fill(eye, -1e4), alike.masked_fill(eye, 0.0)
    return -(alike / alike.sum(1, keepdim=True).clamp_min(1e-6) * F.log_softmax(near, 1)).sum(1).mean()


class Tuning:
    """The state of one run."""

    def __init__(self, tokenizer, words, groups, start: Path, recipe: Recipe, seed: int, known=None):
        torch.manual_seed(seed)
        self.recipe, self.groups, self.seed = recipe, groups, seed
        self.tokens = label_tokens(tokenizer, words)
        self.occurring = net.occurring(ids for g in groups for ids in g.ids)
        marks = tokenizer.encode(MARKS, add_special_tokens=False).ids
        self.topics = [Topics(g, corpus.NEWS_SPACE, marks) if recipe.joined and corpus.NEWS_SPACE in g.targets else None for g in groups]
        self.prompts = [[Prompt(tokenizer, p) for p in g.prompts] for g in groups]
        self.model = net.load(start, recipe.dropout).train()
        self.average = net.load(start)
        self.heads = Heads({k: len(v) for k, v in words.items()}, self.model.shape.hidden_size)
        self.grams = [ngrams.Targets(known, tokenizer, g) for g in groups] if recipe.grams else []
        if self.grams:
            self.heads.grams = nn.Linear(self.model.shape.hidden_size, self.grams[0].dims)
        if recipe.places:
            self.heads.likeness = Likeness(self.model.shape.hidden_size, groups[0].places.shape[1])
        named = [*self.model.named_parameters(), *self.heads.named_parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for _, p in named if p.dim() > 1], "weight_decay": 0.01},
                {"params": [p for _, p in named if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=recipe.peak, betas=(0.9, 0.98), fused=True,
        )
        self.step, self.epoch, self.done_in_epoch = 0, 0, 0

    def language_loss(self, rows, asked):
        """Cross entropy among the tokens that occur in the rows: a third of the vocabulary, at a third of the cost."""
        logits = self.model.logits(rows, self.occurring)
        return F.cross_entropy(logits.float(), torch.searchsorted(self.occurring, asked))

    def loss(self, number, rows, rng):
        recipe, group = self.recipe, self.groups[number]
        grams = self.grams[number] if self.grams else None
        if self.topics[number] and self.topics[number].rows and rng.random() < recipe.joined:
            group, grams = self.topics[number].join(group, rng), None
            rows = np.arange(len(group.ids))
        prompt = self.prompts[number][1 if rng.random() < recipe.second_prompt else 0]
        inputs, asked = collate(group, rows, prompt, recipe.masked_share, rng)
        targets = {space: torch.from_numpy(table[rows]) for space, table in group.targets.items()}
        weights = {space: torch.from_numpy(table[rows]) for space, table in group.weights.items()}
        mask = inputs != corpus.PAD
        with torch.autocast("cpu", torch.bfloat16, enabled=net.HALF):
            states = self.model.states(inputs, None if bool(mask.all()) else mask)
            hidden = states[-1]
            at = prompt.first_mask
            rows_at_masks = self.model.transform(hidden[:, at : at + 2]).float()
            shown = asked >= 0 if recipe.language else torch.zeros_like(mask)
            text = self.language_loss(hidden[shown], asked[shown]) if shown.any() else torch.zeros(())
            spelled = self.grams_loss(grams, rows, states[GRAMS_LAYER], len(prompt.head), asked) if grams else torch.zeros(())
        pooled = net.pool(hidden, mask)
        total = recipe.language * text + recipe.grams * spelled
        parts = {"text": text.item(), "grams": spelled.item()}
        for space, table in targets.items():
            scores = label_scores(self.model, rows_at_masks, self.tokens[space])
            label = soft_cross_entropy(scores, table, weights[space])
            proto = soft_cross_entropy(self.heads(pooled, space), table, weights[space])
            total = total + label + recipe.prototypes * proto
            parts[space] = label.item()
        if targets:
            total = total + recipe.contrast * contrast(pooled, list(targets.values()))
        if recipe.places:
            topics = targets.get(corpus.NEWS_SPACE, torch.zeros(len(rows), len(self.tokens[corpus.NEWS_SPACE])))
            placed = self.heads.likeness(pooled, torch.from_numpy(group.places[rows].astype(np.float32)), topics)
            total = total + recipe.places * placed
            parts["places"] = placed.item()
        return total, parts

    def grams_loss(self, grams, rows, state, first, asked):
        """Squared error on the tokens that are shown."""
        targets, known = (torch.from_numpy(each) for each in grams(rows, first, state.shape[1]))
        known &= asked < 0
        return F.mse_loss(self.heads.grams(state[known]).float(), targets[known])

    def update(self, loss):
        recipe = self.recipe
        warm, left = (self.step + 1) / (0.06 * recipe.steps), max(0, recipe.steps - self.step) / recipe.steps
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.peak * max(0.01, min(1.0, warm, 1.06 * left))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters()):
                mean.lerp_(now, 1 - keep)

    def state(self):
        return {
            "model": self.model.state_dict(), "average": self.average.state_dict(), "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "epoch": self.epoch, "done": self.done_in_epoch,
        }

    def restore(self, state):
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.epoch, self.done_in_epoch = state["step"], state["epoch"], state["done"]
        log.info("restored step=%d", self.step)


def keep(tuning: Tuning, out: Path) -> None:
    partial = out / "state.partial"
    torch.save(tuning.state(), partial)
    partial.replace(out / "state.pt")
    net.save(tuning.average, out)


def run(rows: Path, tokenizer, words, start: Path, out: Path, recipe: Recipe, seed: int, measure=None, known=None) -> None:
    """Tune `start` into `out` on the groups of `rows`; `measure(model)` returns what to log at the end of a pass; `known` is the
    table of n-grams where the recipe asks for them.

    A file named `stop-at` in `out` may change the number of steps of a run under way.
    """
    out.mkdir(parents=True, exist_ok=True)
    groups = pickle.loads(rows.read_bytes())
    tuning = Tuning(tokenizer, words, groups, start, recipe, seed, known)
    if (out / "state.pt").exists():
        tuning.restore(torch.load(out / "state.pt", weights_only=True))
    saved = logged = time.time()
    sums, count = {}, 0
    while tuning.step < tuning.recipe.steps:
        rng = np.random.default_rng([seed, tuning.epoch])
        batches = epoch_batches(groups, rng)
        for number, chosen in batches[tuning.done_in_epoch :]:
            if (out / "stop-at").exists():
                tuning.recipe = replace(recipe, steps=int((out / "stop-at").read_text()))
            batch_rng = np.random.default_rng([seed, tuning.step])
            loss, parts = tuning.loss(number, chosen, batch_rng)
            tuning.update(loss)
            tuning.done_in_epoch += 1
            for key, value in parts.items():
                sums.setdefault(key, []).append(value)
            count += 1
            if count % 50 == 0:
                means = " ".join(f"{k}={np.mean(v):.3f}" for k, v in sums.items())
                log.info("tune step=%d epoch=%d s_per_step=%.2f %s", tuning.step, tuning.epoch, (time.time() - logged) / 50, means)
                sums, logged = {}, time.time()
            if time.time() - saved > SAVE_SECONDS:
                keep(tuning, out)
                saved = time.time()
            if tuning.step >= tuning.recipe.steps:
                break
        else:
            tuning.epoch, tuning.done_in_epoch = tuning.epoch + 1, 0
        if measure:
            log.info("tune step=%d epoch=%d %s", tuning.step, tuning.epoch, measure(tuning.average))
    keep(tuning, out)
    log.info("tuning done step=%d", tuning.step)
