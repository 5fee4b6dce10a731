"""Labelled documents from JSON lines or tab-separated lines, their labels found by the taxonomy's names and codes.

Owns reading and splitting. Knows nothing of models.
"""

import json
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tools.export.errors import Refusal
from tools.export.protocol import Taxonomy

TEXT_FIELDS = ("text", "sentence", "content", "title")
LABEL_FIELDS = ("label", "topic", "label_desc", "label_des")
HELD_OUT = 0.1


@dataclass(frozen=True)
class Example:
    text: str
    label: int  # index in the taxonomy


def read(path: Path, taxonomy_file: Path, text_field: str | None = None, label_field: str | None = None) -> list:
    """Examples of a file; a line that cannot be used is refused with its number."""
    values = label_values(taxonomy_file)
    examples = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        text, candidates = record(line, where, text_field, label_field)
        label = next((values[candidate] for candidate in candidates if candidate in values), None)
        if label is None:
            raise Refusal(f"{where}: {candidates[0]!r} is no label, word or code of {taxonomy_file}")
        examples.append(Example(text, label))
    if not examples:
        raise Refusal(f"{path} holds no documents")
    return examples


def record(line: str, where: str, text_field: str | None, label_field: str | None):
    """The text of a line and the values that may name its label."""
    if not line.lstrip().startswith("{"):
        text, tab, label = line.rpartition("\t")
        if not tab:
            raise Refusal(f"{where} is neither a JSON object nor text, a tab and a label")
        return text, [label.strip()]
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise Refusal(f"{where} is not JSON: {error}") from None
    text = next((fields[name] for name in ([text_field] if text_field else TEXT_FIELDS) if isinstance(fields.get(name), str)), None)
    candidates = [str(fields[name]) for name in ([label_field] if label_field else LABEL_FIELDS) if name in fields]
    if text is None or not candidates:
        raise Refusal(f"{where} has no text ({text_field or ', '.join(TEXT_FIELDS)}) or no label ({label_field or ', '.join(LABEL_FIELDS)})")
    return text, candidates


def label_values(taxonomy_file: Path) -> dict:
    """{name, code or word: index of the label}; a name wins over a code, a code over a word."""
    labels = tomllib.loads(Path(taxonomy_file).read_text(encoding="utf-8"))["labels"]
    values = {}
    for kind in (lambda label: [label["name"]], lambda label: label.get("codes", []), lambda label: label["words"]):
        for index, label in enumerate(labels):
            for value in kind(label):
                values.setdefault(str(value), index)
    return values


def split(examples: list, seed: int):
    """(training, held out): a tenth of each label's examples, at least one where there are two."""
    by_label = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    training, held_out = [], []
    for label in sorted(by_label):
        group = by_label[label]
        random.Random(f"{seed}/{label}").shuffle(group)
        count = max(1, round(len(group) * HELD_OUT)) if len(group) > 1 else 0
        held_out += group[:count]
        training += group[count:]
    return training, held_out


def read_taxonomy(path: Path) -> Taxonomy:
    try:
        return Taxonomy.read(path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise Refusal(f"{path} cannot be read as a taxonomy: {error}") from None
