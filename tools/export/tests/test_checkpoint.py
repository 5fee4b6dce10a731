"""What the published layouts hold is read as transformers reads it; what cannot be used is refused in one message, without running its code."""

import json
import logging
import pickle
import shutil
import tomllib

import numpy as np
import onnx
import pytest
import torch
import transformers
from safetensors.torch import save_file

from tools.export import __main__ as command
from tools.export import checkpoint, convert, gpu, graph, precision, protocol, quantize, tokenizer, verify

from . import checkpoints


@pytest.fixture
def model():
    return checkpoints.random_model(checkpoints.SHAPES["bert-base"])


@pytest.fixture
def folder(tmp_path, model):
    return checkpoints.save(tmp_path / "checkpoint", model)


def assert_same(loaded, model):
    ids = torch.tensor([[102, 150, 103, 104, 101]])
    mask = torch.ones_like(ids)
    want = model(input_ids=ids, attention_mask=mask).logits.detach().numpy()
    np.testing.assert_allclose(loaded.model(input_ids=ids, attention_mask=mask).logits.numpy(), want, atol=1e-4)


def safetensors(folder, model):
    (folder / "pytorch_model.bin").unlink()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "cls.predictions.decoder.weight"}
    save_file(state, str(folder / "model.safetensors"))


def shards(folder, model):
    (folder / "pytorch_model.bin").unlink()
    state = list(model.state_dict().items())
    parts = {"pytorch_model-00001-of-00002.bin": dict(state[:20]), "pytorch_model-00002-of-00002.bin": dict(state[20:])}
    for name, part in parts.items():
        torch.save(part, folder / name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def old_names(folder, model):
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        if not name.startswith("cls.predictions.decoder"):
            state[name] = tensor
    state["bert.embeddings.position_ids"] = torch.arange(512)[None]
    state["bert.pooler.dense.weight"] = torch.zeros(48, 48)
    state["cls.seq_relationship.weight"] = torch.zeros(2, 48)
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def wrapped_names(folder, model):
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()}}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("layout", [lambda *_: None, safetensors, shards, old_names, wrapped_names])
def test_layouts(layout, folder, model):
    layout(folder, model)
    assert_same(checkpoint.load(str(folder)), model)


def test_tokenizer_follows_its_configuration(tmp_path, model):
    texts = ["Apple 发布 iPhone", "naïve café", "汽车abc", "[MASK]不是特殊符号[SEP]"]
    for number, settings in enumerate([None, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}, {"tokenize_chinese_chars": False}]):
        folder = checkpoints.save(tmp_path / str(number), model, tokenizer_config=settings)
        built = tokenizer.load(folder)
        slow = transformers.BertTokenizer.from_pretrained(str(folder))
        slow.basic_tokenizer.never_split = set()
        for text in texts:
            pieces = [piece for word in slow.basic_tokenizer.tokenize(text) for piece in slow.wordpiece_tokenizer.tokenize(word)]
            assert tokenizer.plain_ids(built, text) == slow.convert_tokens_to_ids(pieces), (settings, text)
    assert tokenizer.load(tmp_path / "0").do_lower_case, "BertTokenizer's default where tokenizer_config.json is missing"


def test_a_ready_tokenizer_is_kept(folder):
    built = tokenizer.load(folder)
    built.save_pretrained(folder)
    (folder / "vocab.txt").unlink()
    again = tokenizer.load(folder)
    assert tokenizer.plain_ids(again, "汽车 iphone[MASK]") == tokenizer.plain_ids(built, "汽车 iphone[MASK]")


def test_a_ready_tokenizer_needs_no_configuration(tmp_path, model):
    folder = checkpoints.save(tmp_path / "cased", model, tokenizer_config={"do_lower_case": False})
    built = tokenizer.load(folder)
    built.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    again = tokenizer.load(folder)
    assert tokenizer.plain_ids(again, "iPhone 汽车") == tokenizer.plain_ids(built, "iPhone 汽车")


def test_capitals_over_a_vocabulary_without_any_are_reported(tmp_path, model, caplog):
    keeps = tokenizer.load(checkpoints.save(tmp_path / "keeps", model, tokenizer_config={"do_lower_case": False}))
    lowers = tokenizer.load(checkpoints.save(tmp_path / "lowers", model))
    with caplog.at_level(logging.WARNING, logger="export"):
        convert.report_vocabulary(lowers)
        assert not caplog.records
        convert.report_vocabulary(keeps)
    lower = [text.lower() for text in verify.texts()]
    shares = tokenizer.unknown_share(keeps, verify.texts()), tokenizer.unknown_share(keeps, lower)
    assert shares[0] > 2 * shares[1]
    for share in shares:
        assert f"{100 * share:.2f} %" in caplog.text
    assert "do_lower_case" in caplog.text


def settings(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def pickled_code(folder, _):
    with open(folder / "pytorch_model.bin", "wb") as sink:
        pickle.dump({"bert.embeddings.word_embeddings.weight": Code(str(folder / "executed"))}, sink)


def encoder_alone(folder, model):
    torch.save(model.bert.state_dict(), folder / "pytorch_model.bin")


def without(*names):
    def spoil(folder, _):
        for name in names:
            (folder / name).unlink()

    return spoil


def with_weight(name, change):
    def spoil(folder, model):
        torch.save({**model.state_dict(), **{name: change(model.state_dict()[name])}}, folder / "pytorch_model.bin")

    return spoil


def too_many_words(folder, _):
    with open(folder / "vocab.txt", "a", encoding="utf-8") as sink:
        sink.write("多\n")


def truncated(folder, _):
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])


REFUSED = {
    "roberta": (lambda f, m: settings(f, architectures=["RobertaForMaskedLM"], model_type="roberta"), "RobertaForMaskedLM is not supported"),
    "classifier": (lambda f, m: settings(f, architectures=["BertForSequenceClassification"]), "no masked-language head"),
    "relative positions": (lambda f, m: settings(f, position_embedding_type="relative_key"), "relative_key"),
    "encoder alone": (encoder_alone, "without a masked-language head"),
    "no config": (without("config.json"), "config.json"),
    "no vocabulary": (without("vocab.txt"), "vocab.txt"),
    "no weights": (without("pytorch_model.bin"), "pytorch_model.bin"),
    "vocabulary too large": (too_many_words, "embedding only"),
    "half a file": (truncated, "cannot be read as weights"),
    "pickled code": (pickled_code, "cannot be read as weights"),
    "a layer too few": (lambda f, m: settings(f, num_hidden_layers=2), "num_hidden_layers"),
    "a layer too many": (lambda f, m: settings(f, num_hidden_layers=4), "weights lack bert.encoder.layer.3"),
    "not a number": (with_weight("cls.predictions.bias", lambda t: t * float("nan")), "not finite"),
    "other shape": (with_weight("bert.encoder.layer.0.output.dense.bias", lambda t: t[:-1]), "has shape"),
    "config is no JSON": (lambda f, m: (f / "config.json").write_text("{", encoding="utf-8"), "config.json"),
    "no folder": (lambda f, m: shutil.rmtree(f), "neither a folder nor a model's name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, folder, model, monkeypatch, capsys):
    spoil, words = REFUSED[name]
    spoil(folder, model)
    target = folder.parent / "bundle"
    monkeypatch.setattr("sys.argv", ["export", "--checkpoint", str(folder), "--out", str(target)])
    assert command.main() == 2
    said = capsys.readouterr().err.strip()
    assert words in said and said.startswith("export: ") and "\n" not in said
    assert not target.exists() and not (folder / "executed").exists()


@pytest.mark.parametrize("name", checkpoints.SHAPES)
def test_every_layer_is_fused(name, tmp_path):
    shape = checkpoints.SHAPES[name]
    model = checkpoints.random_model(shape)
    graph.trace(model, tmp_path / "plain.onnx")
    counts = graph.operators(graph.fuse(tmp_path / "plain.onnx", model.config).model)
    assert counts["Attention"] == shape.layers and counts["EmbedLayerNormalization"] == 1
    assert counts["SkipLayerNormalization"] == 2 * shape.layers
    assert "Softmax" not in counts


@pytest.mark.parametrize("name", checkpoints.SHAPES)
def test_a_packed_graph_stands_beside_the_one_with_padding(name, tmp_path):
    shape = checkpoints.SHAPES[name]
    loaded = checkpoint.load(str(checkpoints.save(tmp_path / "checkpoint", checkpoints.random_model(shape))))
    convert.export(loaded, convert.Request("bundle", tmp_path / "bundle", "fp16", allow_unverified=True))
    padded, packed = (onnx.load(tmp_path / "bundle" / file, load_external_data=False) for file in ("model.onnx", precision.PACKED))
    assert [tensor.SerializeToString() for tensor in packed.graph.initializer] == [tensor.SerializeToString() for tensor in padded.graph.initializer]
    before, after = graph.operators(padded), graph.operators(packed)
    assert after.pop("PackedAttention") == before.pop("Attention") == shape.layers
    assert after.pop("RestorePadding") == 1
    assert after.pop("RemovePadding") == (2 if shape.family == "MegatronBert" else 1), "the sum before the first norm is packed too"
    assert after == before
    onnx.checker.check_model(tmp_path / "bundle" / precision.PACKED)
    manifest = tomllib.loads((tmp_path / "bundle" / "bundle.toml").read_text(encoding="utf-8"))
    assert precision.PACKED in manifest["files"] and f"1024x{loaded.max_tokens}" in manifest["tensorrt"]["largest"]


def test_what_looks_beyond_a_token_cannot_be_packed(tmp_path, model):
    graph.trace(model, tmp_path / "plain.onnx")
    fused = graph.fuse(tmp_path / "plain.onnx", model.config).model
    gpu.count_tokens(fused)
    layer = next(node for node in fused.graph.node if node.op_type == "BiasGelu")
    layer.op_type, layer.domain = "Softmax", ""
    with pytest.raises(convert.Refusal, match="Softmax .* looks beyond a token"):
        gpu.pack(fused)


def test_tensorrt_wants_fp16(tmp_path, model):
    loaded = checkpoint.load(str(checkpoints.save(tmp_path / "checkpoint", model)))
    with pytest.raises(convert.Refusal, match="fp16"):
        convert.export(loaded, convert.Request("bundle", tmp_path / "bundle", "int8", provider="tensorrt"))


@pytest.mark.parametrize("name", ["bert-base", "megatron-1.3b"])
def test_an_int8_graph_computes_nothing_in_vain_and_whole_columns(name, tmp_path):
    model = checkpoints.random_model(checkpoints.SHAPES[name])
    graph.trace(model, tmp_path / "plain.onnx")
    fused = graph.fuse(tmp_path / "plain.onnx", model.config).model
    assert model.config.vocab_size % quantize.COLUMNS, "a head that has to be padded belongs to the test"
    quantize.rewrite(fused)
    read = {name for node in fused.graph.node for name in node.input} | {output.name for output in fused.graph.output}
    assert not [node.name for node in fused.graph.node if not read.intersection(node.output)]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in fused.graph.initializer}
    products = [node for node in fused.graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(products) == 6 * model.config.num_hidden_layers + 2
    for node in products:
        assert shapes[node.input[5]][0] % quantize.COLUMNS == 0


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_a_document_does_not_depend_on_its_batch(kind, tmp_path, model):
    loaded = checkpoint.load(str(checkpoints.save(tmp_path / "checkpoint", model)))
    convert.export(loaded, convert.Request("bundle", tmp_path / "bundle", kind, allow_unverified=True))
    run = verify.session(tmp_path / "bundle" / "model.onnx")
    texts = [text for text in verify.texts() if text][:8] + verify.texts()[-1:]
    documents = [protocol.encode(loaded.tokenizer, verify.PROMPT, 2, text, loaded.max_tokens) for text in texts]
    words = {"label_token_ids": np.arange(104, 300)}
    together = run.run(None, verify.padded(documents, 0) | words)
    for row, document in enumerate(documents):
        alone = run.run(None, verify.padded([document], 0) | words)
        for batched, single in zip(together, alone):
            np.testing.assert_allclose(batched[row], single[0], atol=2e-3 if kind == "int8" else 1e-4)


def test_a_bundle_beyond_its_limits_is_refused(tmp_path, model, monkeypatch):
    loaded = checkpoint.load(str(checkpoints.save(tmp_path / "checkpoint", model)))
    monkeypatch.setattr(graph, "fuse", broken(graph.fuse))
    request = convert.Request("bundle", tmp_path / "bundle")
    with pytest.raises(convert.Refusal, match="differs too much"):
        convert.export(loaded, request)
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_may_lie_beside_its_checkpoint(folder):
    before = {path.name for path in folder.iterdir()}
    weights = (folder / "pytorch_model.bin").read_bytes()
    for kind in ("fp32", "fp16"):
        convert.export(checkpoint.load(str(folder)), convert.Request("bundle", folder, kind, allow_unverified=True))
    graphs = {"model.onnx", "model.onnx.data", precision.PACKED}
    assert {path.name for path in folder.iterdir()} == before | graphs | {"bundle.toml", "tokenizer.json"}
    assert (folder / "pytorch_model.bin").read_bytes() == weights
    manifest = tomllib.loads((folder / "bundle.toml").read_text(encoding="utf-8"))
    assert manifest["precision"] == "fp16" and set(manifest["files"]) == graphs | {"tokenizer.json"}


def broken(fuse):
    """A fusion that gets one bias wrong."""

    def wrong(*arguments, **keywords):
        fused = fuse(*arguments, **keywords)
        for tensor in fused.model.graph.initializer:
            if tensor.name.endswith("layer.1.output.dense.bias"):
                tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * 1.1).astype(np.float32).tobytes()
        return fused

    return wrong
