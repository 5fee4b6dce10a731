"""Makes the committed goldens: two small random checkpoints, their bundles, and what the reference protocol says of fixed documents.

    PYTHONPATH=. python tests/goldens/make.py            (tools/requirements-torch.txt)

The documents, the taxonomies and the seeds are fixed; README.md beside this file describes the files it writes.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, MegatronBertConfig, MegatronBertForMaskedLM

from tools.export import checkpoint, convert, protocol
from tools.export.tokenizer import plain_ids

HERE = Path(__file__).parent
TAXONOMIES = ("two", "ragged", "words", "single")
FAMILIES = {
    # folder: (config, model, how many tokens fit, tokenizer_config.json or None for BertTokenizer's defaults)
    "tiny": (BertConfig, BertForMaskedLM, 128, None),
    "tiny-megatron": (MegatronBertConfig, MegatronBertForMaskedLM, 96, {"do_lower_case": False}),
}

DOCUMENTS = {
    "empty": "",
    "space": "   ",
    "one-sign": "。",
    "one-word": "球",
    "headline": "国足热身赛一球小胜，主教练赛后称仍需磨合",
    "finance": "央行下调存款准备金率，释放长期资金约五千亿元",
    "travel": "高铁开通首日，小城迎来三万名游客",
    "school": "研究生招生规模扩大，专业学位占比提高",
    "digits": "2024年第3季度GDP增长4.6%，共12,345亿元",
    "mixed-script": "OpenAI 发布新版 GPT，支持图片 and voice 输入",
    "capitals": "NBA常规赛湖人逆转勇士",
    "accents": "naïve café 与 Ångström 的故事",
    "japanese": "東京オリンピックのマラソン",
    "cyrillic": "Новости спорта，今日快讯",
    "full-width": "Ｆｕｌｌ－ｗｉｄｔｈ　ＡＢＣ　１２３，全角字符",
    "emoji": "今天的心情😀👍🏽，转发抽奖🎁",
    "zero-width": "零宽\u200b字符\ufeff和\u00ad软连字符",
    "controls": "换行\n制表\t回车\r空\x00字符\x07",
    "literal-mask": "比分[MASK][MASK]，下一场再战",
    "literal-specials": "[CLS]新闻[SEP]第二句[PAD]结束[UNK]",
    "only-mask": "[MASK]",
    "lower-mask": "[mask]与 [ MASK ] 不同",
    "unknown-words": "龘靐齉爩的发音",
    "long-word": "a" * 150 + "汽车",
    "word-pieces": "playing players replay 游戏",
    "punctuation": "“你好”——（世界）《书》…、；：！？",
    "long": "小麦锈病进入高发期，农技人员提醒及时用药。" * 3,
    "at-the-limit": "车" * 113,
    "one-too-many": "车" * 114,
    "truncated": "老旧小区加装电梯，一楼住户为何不同意？房价和租金连续三个月下跌。" * 12,
    "truncated-mask-at-the-cut": "球" * 108 + "[MASK]" * 30,
    "truncated-english": "playing football in the city " * 60,
}
PIECES = """playing play ##ing ##ers re ##play ##ed football in the city open ##ai openai2 and voice gpt GPT nba NBA gdp GDP naive cafe caf ##e ang ##strom
ang ##str ##om mask MASK cls CLS sep SEP pad PAD unk ##sk full Full width ABC abc 2024 12 345 123 4 6 3 a ##a Open ##AI new ##s""".split()


def main() -> int:
    torch.set_num_threads(1)
    for seed, (name, family) in enumerate(FAMILIES.items(), 1):
        make(name, seed, *family)
    return 0


def make(name: str, seed: int, config_class, model_class, max_tokens: int, tokenizer_config) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / f"{name}-random"
        save_checkpoint(folder, seed, config_class, model_class, max_tokens, tokenizer_config)
        loaded = checkpoint.load(str(folder))
        request = convert.Request(name, HERE / name, source=f"random weights, tests/goldens/make.py, seed {seed}", license="apache-2.0")
        convert.export(loaded, request)
        expected = {"bundle": name, "tolerance": 1e-4, "taxonomies": {}, "documents": []}
        references = {}
        for taxonomy in TAXONOMIES:
            path = HERE / "taxonomies" / f"{taxonomy}.toml"
            references[taxonomy] = reference = protocol.Reference(
                protocol.torch_forward(loaded.model), loaded.tokenizer, protocol.Taxonomy.read(path), loaded.max_tokens
            )
            expected["taxonomies"][taxonomy] = describe(reference)
        for key, text in DOCUMENTS.items():
            check_tokens(loaded, folder, text)
            answers = {taxonomy: answer(reference, text) for taxonomy, reference in references.items()}
            expected["documents"].append({"id": key, "text": text, "answers": answers})
        suffix = name[len("tiny") :]
        (HERE / f"expected{suffix}.json").write_text(pretty(expected), encoding="utf-8")


def save_checkpoint(folder: Path, seed: int, config_class, model_class, max_tokens: int, tokenizer_config) -> None:
    """A random checkpoint in the published layout, whose answers differ clearly from document to document."""
    folder.mkdir()
    words = vocabulary()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=len(words) + 7, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=max_tokens, architectures=[model_class.__name__],
    )  # fmt: skip
    model = model_class(config)
    for name, parameter in model.named_parameters():  # also the norms and biases, which fresh models leave at one and zero
        scale = 0.1 if parameter.dim() == 1 else 0.2 if "position" in name or "type" in name else 0.45
        centre = 1.0 if parameter.dim() == 1 and (parameter == 1).all() else 0.0
        parameter.data = torch.randn_like(parameter) * scale + centre
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def vocabulary() -> list:
    """[PAD] [UNK] [CLS] [SEP] [MASK] at ids that are not the published ones, then every sign of the documents but the rare ones."""
    texts = "".join(DOCUMENTS.values()) + "".join((HERE / "taxonomies" / f"{name}.toml").read_text(encoding="utf-8") for name in TAXONOMIES)
    rare = set("龘靐齉爩😀👍🏽🎁　") | {chr(code) for code in range(0x3041, 0x3100)}
    signs = sorted(sign for sign in set(texts) if not sign.isspace() and sign.isprintable() and sign not in rare)
    pieces = [piece for piece in dict.fromkeys(PIECES) if piece not in signs]
    letters = ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"]
    return ["[unused1]", "[PAD]", "[SEP]", "[MASK]", "[unused2]", "[CLS]", "[UNK]", *signs, *pieces, *(p for p in letters if p not in pieces)]


def check_tokens(loaded, folder: Path, text: str) -> None:
    """The fast tokenizer's ids are those of the published BertTokenizer, which is written in Python, apart from it."""
    slow = BertTokenizer.from_pretrained(str(folder))
    # Its two steps by hand: BertTokenizer as a whole would read the name of a special token in the text as that token.
    slow.basic_tokenizer.never_split = set()
    pieces = [piece for word in slow.basic_tokenizer.tokenize(text) for piece in slow.wordpiece_tokenizer.tokenize(word)]
    want = slow.convert_tokens_to_ids(pieces)
    got = plain_ids(loaded.tokenizer, text)
    if want != got:
        raise SystemExit(f"the fast and the slow tokenizer differ on {text!r}:\n{pieces}\n{loaded.tokenizer.convert_ids_to_tokens(got)}")


def describe(reference) -> dict:
    taxonomy = reference.taxonomy
    return {
        "file": f"taxonomies/{taxonomy.name}.toml",
        "prompt": reference.prompt,
        "labels": [label.name for label in taxonomy.labels],
        "words": [[{"word": w, "token_ids": ids} for w, ids in zip(label.words, all_ids)] for label, all_ids in zip(taxonomy.labels, reference.word_ids)],
        "prior": rounded(reference.prior) if taxonomy.calibration else None,
    }


def answer(reference, text: str) -> dict:
    said = reference.tag(text)
    return {
        "truncated": said.truncated,
        "passes": [{"masks": masks, "input_ids": encoded.input_ids, "mask_positions": encoded.mask_positions} for masks, encoded in sorted(said.passes.items())],
        "scores": rounded(said.scores),
        "best_words": said.best_words,
        "probabilities": rounded(said.probabilities),
        "ranking": [reference.taxonomy.labels[index].name for index in said.ranking],
        "embedding": rounded(said.embedding),
    }


def rounded(values) -> list:
    return [round(float(value), 7) for value in values]


def pretty(expected: dict) -> str:
    """One document a line, so that a change shows as the documents that it touches."""
    documents = expected.pop("documents")
    head = json.dumps(expected, ensure_ascii=False, indent=1)
    lines = ",\n".join(json.dumps(document, ensure_ascii=False) for document in documents)
    return head[:-2] + ',\n "documents": [\n' + lines + "\n ]\n}\n"


if __name__ == "__main__":
    sys.exit(main())
