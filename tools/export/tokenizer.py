"""The fast tokenizer of a checkpoint, as BertTokenizer's own rules make it, and what is odd about its vocabulary.

Owns how tokenizer_config.json is honoured (transformers' defaults: do_lower_case is true) and the tokenizer.json that the worker reads.
"""

import json
import re
from pathlib import Path

from transformers import BertTokenizerFast

from .errors import Refusal

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load(folder: Path) -> BertTokenizerFast:
    """Reads tokenizer.json or builds it from vocab.txt."""
    vocabulary, ready = folder / "vocab.txt", folder / "tokenizer.json"
    if not vocabulary.exists() and not ready.exists():
        raise Refusal(f"{folder} has neither vocab.txt nor tokenizer.json")
    if vocabulary.exists():
        check_vocabulary(vocabulary)
    try:
        tokenizer = BertTokenizerFast.from_pretrained(str(folder), local_files_only=True, **unsaid(folder))
    except Exception as error:  # the reader of tokenizer.json raises bare exceptions
        raise Refusal(f"the tokenizer of {folder} cannot be read: {error}") from error
    words = tokenizer.get_vocab()
    missing = [token for token in SPECIAL if token not in words]
    if missing:
        raise Refusal(f"the vocabulary of {folder} has no {missing[0]}")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def unsaid(folder: Path) -> dict:
    """What a ready tokenizer.json says and tokenizer_config.json does not: BertTokenizerFast would put its defaults in its place."""
    ready, configuration = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not ready.exists():
        return {}
    normalizer = json.loads(ready.read_text(encoding="utf-8")).get("normalizer") or {}
    said = json.loads(configuration.read_text(encoding="utf-8")) if configuration.exists() else {}
    names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents", "tokenize_chinese_chars": "handle_chinese_chars"}
    return {name: normalizer[key] for name, key in names.items() if key in normalizer and name not in said}


def check_vocabulary(path: Path) -> None:
    try:
        words = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from None
    words = words[:-1] if words and words[-1] == "" else words
    missing = [token for token in SPECIAL if token not in words]
    if missing:
        raise Refusal(f"{path} has no line {missing[0]}: it is not the vocabulary of a BERT")


def keeps_capitals(tokenizer) -> bool:
    """True for a tokenizer that keeps capital letters over a vocabulary that has none (bert-base-chinese is published so)."""
    if tokenizer.do_lower_case:
        return False
    # Signs such as [MASK], [unused1] and the <S> of the published vocabulary are no words.
    return not any(re.fullmatch(r"(##)?\w*[A-Z]\w*", word) for word in tokenizer.get_vocab())


def plain_ids(tokenizer, text: str) -> list:
    """Token ids of a text in which nothing is special, `[MASK]` least of all."""
    fast = tokenizer.backend_tokenizer
    fast.encode_special_tokens = True  # each time: transformers' own calls switch it off again
    return fast.encode(text, add_special_tokens=False).ids


def unknown_share(tokenizer, texts: list) -> float:
    """The share of the texts' tokens that are [UNK]."""
    ids = [token for text in texts for token in plain_ids(tokenizer, text)]
    return ids.count(tokenizer.unk_token_id) / max(1, len(ids))
