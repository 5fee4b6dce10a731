"""The learning curve as a picture."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the choice of a backend without a screen

INK, ACCENT = "#444444", "#1f6f8b"


def draw(history: list, path: Path, title: str) -> None:
    """Held-out accuracy with the value before training, and the training loss beneath."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=(2, 1), layout="constrained")
    epochs = [point["epoch"] for point in history]
    accuracies = [100 * point["accuracy"] for point in history]
    top.plot(epochs, accuracies, "o-", color=ACCENT)
    best = max(range(len(history)), key=lambda i: accuracies[i])
    top.annotate(f"{accuracies[best]:.1f} %", (epochs[best], accuracies[best]), xytext=(0, 8), textcoords="offset points", ha="center", color=ACCENT)
    top.axhline(accuracies[0], color=INK, linewidth=0.8, linestyle=":")
    top.annotate(f"before {accuracies[0]:.1f} %", (epochs[-1], accuracies[0]), xytext=(0, 4), textcoords="offset points", ha="right", color=INK)
    top.set_ylabel("held-out accuracy, %")
    top.set_title(f"Fine-tuning on {title}", loc="left")
    top.margins(y=0.15)
    losses = [(point["epoch"], point["loss"]) for point in history if point["loss"] is not None]
    bottom.plot(*(zip(*losses) if losses else ([], [])), "o-", color=INK)
    bottom.set_ylabel("training loss")
    bottom.set_xlabel("epoch")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
