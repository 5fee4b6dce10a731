"""Stage 5 and 6: the shipped folder from a trained network, and what it scores.

Owns which files ship and how the int8 graph is compared with its fp32 weights. The graph itself, its precision and
bundle.toml are the work of `tools/export`.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from . import corpus, measure, model as net
from .tune import Prompt

TOKENIZER_SETTINGS = {"do_lower_case": True, "strip_accents": True, "tokenizer_class": "BertTokenizer", "model_max_length": 512}
COMPARED_TITLES = 2000
BATCH_ROWS = 32


def write(trained: Path, tokenizer, vocab: Path, out: Path) -> None:
    """The fp16 checkpoint that fine-tuning starts from, and the int8 bundle made from that very checkpoint."""
    from export import checkpoint, convert

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "compact"
        folder.mkdir()
        net.save(net.load(trained), folder, torch.float16)
        shutil.copy(vocab, folder / "vocab.txt")
        (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_SETTINGS, indent=2) + "\n")
        tokenizer.save(str(folder / "tokenizer.json"))
        readme = (out / "README.md").read_text(encoding="utf-8") if (out / "README.md").exists() else None
        request = convert.Request(
            name="compact", target=out, precision="int8", source="trained by tools/train", license="Apache-2.0"
        )
        convert.export(checkpoint.load(str(folder)), request)
        for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
            shutil.copyfile(folder / name, out / name)
        if readme:
            (out / "README.md").write_text(readme, encoding="utf-8")


class Graph:
    """A bundle's model.onnx under ONNX Runtime, read the way the worker reads it."""

    def __init__(self, bundle: Path, threads: int = 2):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def infer(self, tokenizer, texts, prompt_text, words):
        """(mean log probability of each label's word [texts, labels], unit embeddings [texts, hidden])."""
        prompt = Prompt(tokenizer, prompt_text)
        pairs = np.array([tokenizer.encode(w, add_special_tokens=False).ids for w in words], np.int64)
        wanted, at = np.unique(pairs, return_inverse=True)
        at = at.reshape(pairs.shape)
        rows = [prompt.head + e.ids[:490] + [corpus.SEP] for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        order = np.argsort([len(r) for r in rows], kind="stable")
        scores, embeddings = np.zeros((len(rows), len(words))), None
        for start in range(0, len(order), BATCH_ROWS):
            chosen = order[start : start + BATCH_ROWS]
            ids = np.zeros((len(chosen), max(len(rows[i]) for i in chosen)), np.int64)
            mask = np.zeros_like(ids)
            for k, i in enumerate(chosen):
                ids[k, : len(rows[i])], mask[k, : len(rows[i])] = rows[i], 1
            masks = np.tile(np.array([prompt.first_mask, prompt.first_mask + 1], np.int64), (len(chosen), 1))
            feed = {"input_ids": ids, "attention_mask": mask, "mask_positions": masks, "label_token_ids": wanted}
            found, pooled = self.session.run(["label_log_probs", "sentence_embedding"], feed)
            scores[chosen] = (found[:, 0, at[:, 0]] + found[:, 1, at[:, 1]]) / 2
            embeddings = np.zeros((len(rows), pooled.shape[1])) if embeddings is None else embeddings
            embeddings[chosen] = pooled
        return scores, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def interval(share: float, rows: int):
    """Wilson's 95 % interval of a share."""
    z = 1.96
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    return round(centre - half, 4), round(centre + half, 4)


def compare(bundle: Path, tokenizer, words, data: Path, sets: dict, scale: float) -> dict:
    """int8 against fp32 of the shipped weights on held-out `sets`: accuracy, same label, nearest neighbours, each class."""
    keep = max(1, round(1 / scale / 20))
    plain, graph = net.load(bundle), Graph(bundle)
    reference = corpus.every(corpus.read_labelled(data, "tnews", "train_few_all"), keep)
    prompt, found = corpus.NEWS_PROMPTS[0], {}
    for name, rows in sets.items():
        rows = corpus.every(rows, keep)
        fp32, fp32_embedding = measure.infer(plain, tokenizer, rows.texts, prompt, [name], words, half=False)
        int8, int8_embedding = graph.infer(tokenizer, rows.texts, prompt, words[name])
        right = int8.argmax(1) == rows.labels
        found[name] = {
            "rows": len(rows.texts),
            "int8": round(float(right.mean()), 4),
            "int8_interval": interval(float(right.mean()), len(rows.texts)),
            "fp32": round(float((fp32[name].argmax(1) == rows.labels).mean()), 4),
            "same_label": round(float((int8.argmax(1) == fp32[name].argmax(1)).mean()), 4),
            "recall": {w: round(float(right[rows.labels == i].mean()), 3) for i, w in enumerate(words[name]) if (rows.labels == i).any()},
        }
        if name == "tnews":
            for precision, asked in (("int8", int8_embedding), ("fp32", fp32_embedding)):
                if precision == "int8":
                    _, known = graph.infer(tokenizer, reference.texts, prompt, words[name])
                else:
                    _, known = measure.infer(plain, tokenizer, reference.texts, prompt, [name], words, half=False)
                found[name][f"nearest_{precision}"] = round(measure.nearest(known, reference.labels, asked, rows.labels), 4)
    return {**found, "titles": agreement(bundle, tokenizer, words, data, scale)}


def agreement(bundle: Path, tokenizer, words, data: Path, scale: float) -> dict:
    """How often int8 and fp32 give one label on unlabelled titles, and how near their embeddings are."""
    keep = max(1, round(1 / scale / 20))
    plain, graph, prompt, found = net.load(bundle), Graph(bundle), corpus.NEWS_PROMPTS[0], {}
    sample = corpus.read_unlabelled(data)[:COMPARED_TITLES:keep]
    fp32, fp32_embedding = measure.infer(plain, tokenizer, sample, prompt, ["tnews", "thucnews"], words, half=False)
    for name in ("tnews", "thucnews"):
        int8, int8_embedding = graph.infer(tokenizer, sample, prompt, words[name])
        found[f"same_label_{name}"] = round(float((int8.argmax(1) == fp32[name].argmax(1)).mean()), 4)
    return {"rows": len(sample), **found, "lowest_cosine": round(float((int8_embedding * fp32_embedding).sum(1).min()), 4)}
