"""The training loop: schedule, early stopping, a state file to go on from, the best weights as a checkpoint.

Owns the run's folder: state.pt, history.json, curve.png and best/ (published layout). Knows nothing of where documents come from.
"""

import json
import logging
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from tools.export.errors import Refusal

from . import curve
from .task import Task, accuracy

log = logging.getLogger("finetune")
SAVE_SECONDS = 120
WARM_UP = 0.1
SMALL_MODEL = 60_000_000
CLIP = 1.0
DECAY = 0.01


@dataclass(frozen=True)
class Plan:
    """What makes two runs the same; a run goes on only under the plan that it was begun with."""

    checkpoint: str
    taxonomy: str
    documents: int
    epochs: int = 10
    batch: int = 32
    learning_rate: float = 0.0
    patience: int = 3
    max_tokens: int = 128
    prompt: int = 0
    seed: int = 1


def learning_rate_for(parameters: int) -> float:
    """What suited small models here, and what BERT papers use for large ones."""
    return 2e-4 if parameters < SMALL_MODEL else 2e-5


class Run:
    """One fine-tuning run in its folder."""

    def __init__(self, folder: Path, plan: Plan, loaded, task: Task, training: list, held_out: list):
        self.folder, self.plan, self.loaded, self.task = folder, plan, loaded, task
        self.model = loaded.model.requires_grad_(True)
        self.bodies = [task.encode(example.text) for example in training]
        self.labels = [example.label for example in training]
        self.held_bodies = [task.encode(example.text) for example in held_out]
        self.held_labels = [example.label for example in held_out]
        self.total = plan.epochs * len(self.batches(0))
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model), lr=plan.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)
        self.history, self.epoch, self.done, self.running = [], 0, 0, []
        torch.manual_seed(plan.seed)
        folder.mkdir(parents=True, exist_ok=True)

    def rate(self, step: int) -> float:
        warm = max(1, int(self.total * WARM_UP))
        return (step + 1) / warm if step < warm else max(0.0, (self.total - step) / max(1, self.total - warm))

    def batches(self, epoch: int) -> list:
        """Row numbers, the same for an epoch in every process."""
        order = random.Random(f"{self.plan.seed}/{epoch}")
        rows = list(range(len(self.labels)))
        order.shuffle(rows)
        batches, pool = [], self.plan.batch * 20  # sorted by length within pools: little padding, still mixed
        for start in range(0, len(rows), pool):
            inside = sorted(rows[start : start + pool], key=lambda row: len(self.bodies[row]))
            batches += [inside[i : i + self.plan.batch] for i in range(0, len(inside), self.plan.batch)]
        order.shuffle(batches)
        return batches

    def train(self) -> None:
        if not self.resume():
            self.note(0, None)
        while self.epoch < self.plan.epochs and not self.exhausted():
            self.one_epoch()
        best = max(self.history, key=lambda point: point["accuracy"])
        log.info("best held-out accuracy %.4f after epoch %d", best["accuracy"], best["epoch"])

    def exhausted(self) -> bool:
        best = max(range(len(self.history)), key=lambda i: self.history[i]["accuracy"])
        return len(self.history) - 1 - best >= self.plan.patience

    def one_epoch(self) -> None:
        batches = self.batches(self.epoch)
        saved = time.monotonic()
        self.model.train()
        for batch in tqdm(batches[self.done :], initial=self.done, total=len(batches), desc=f"epoch {self.epoch + 1}", disable=None):
            loss = self.task.loss(self.model, [self.bodies[row] for row in batch], [self.labels[row] for row in batch])
            if not loss.isfinite():
                raise Refusal(f"the loss is no longer a number in epoch {self.epoch + 1}; use a smaller --learning-rate")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.running.append(loss.item())
            self.done += 1
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        mean = sum(self.running) / len(self.running)
        self.epoch, self.done, self.running = self.epoch + 1, 0, []
        self.note(self.epoch, mean)

    def note(self, epoch: int, loss: float | None) -> None:
        """Measures on the held-out documents, keeps the weights if they are the best so far, redraws the curve."""
        said = self.task.predict(self.model, self.held_bodies)
        point = {"epoch": epoch, "loss": loss, "accuracy": accuracy(said, self.held_labels)}
        best = all(point["accuracy"] > other["accuracy"] for other in self.history)
        self.history.append(point)
        log.info("epoch %d: loss %s, held-out accuracy %.4f%s", epoch, "-" if loss is None else f"{loss:.4f}", point["accuracy"], " *" if best else "")
        if best:
            self.keep()
        self.save()
        (self.folder / "history.json").write_text(json.dumps(self.history, indent=1) + "\n", encoding="utf-8")
        curve.draw(self.history, self.folder / "curve.png", Path(self.plan.taxonomy).stem)

    def keep(self) -> None:
        """best/ in the published layout: the exporter, transformers and another fine-tuning read it."""
        best = self.folder / "best"
        best.mkdir(exist_ok=True)
        config = {**self.model.config.to_dict(), "architectures": [self.loaded.architecture]}
        (best / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        self.loaded.tokenizer.save_pretrained(best)
        words = sorted(self.loaded.tokenizer.get_vocab().items(), key=lambda item: item[1])
        (best / "vocab.txt").write_text("".join(word + "\n" for word, _ in words), encoding="utf-8")
        state = {name: tensor.contiguous().clone() for name, tensor in self.model.state_dict().items()}
        whole(best / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))

    def save(self) -> None:
        state = {
            "plan": asdict(self.plan), "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "random": torch.get_rng_state(), "history": self.history, "epoch": self.epoch, "done": self.done, "running": self.running,
        }  # fmt: skip
        whole(self.folder / "state.pt", lambda path: torch.save(state, path))

    def resume(self) -> bool:
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["plan"] != asdict(self.plan):
            changed = [key for key, value in asdict(self.plan).items() if state["plan"].get(key) != value]
            raise Refusal(f"{self.folder} holds a run begun with other settings ({', '.join(changed)}); use --restart to begin anew or another --work")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        self.history, self.epoch, self.done, self.running = state["history"], state["epoch"], state["done"], state["running"]
        log.info("going on in epoch %d after %d batches", self.epoch + 1, self.done)
        return True


def parameter_groups(model) -> list:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    return [{"params": decayed, "weight_decay": DECAY}, {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}]


def whole(path: Path, write) -> None:
    """A file that is replaced when it is complete."""
    part = path.with_suffix(path.suffix + ".part")
    write(str(part))
    os.replace(part, path)
