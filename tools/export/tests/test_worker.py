"""The worker's answers from an exported bundle are those of transformers from the checkpoint, label by label."""

import numpy as np
import pytest

from tools.export import bundle, checkpoint, convert, precision, protocol, verify

from . import checkpoints, worker

TOLERANCE = 1e-4
# Short, mixed script, special tokens as text, and longer than 512 tokens; the worker tags no text that is blank.
TEXTS = [text for text in verify.texts()[:60:10] + verify.texts()[-12:] if text.strip()]


def export(folder, target, **changes):
    loaded = checkpoint.load(str(folder))
    convert.export(loaded, convert.Request(name=target.name, target=target, **changes))
    return loaded


def compare(loaded, target, taxonomy_file, tolerance=TOLERANCE):
    taxonomy = protocol.Taxonomy.read(taxonomy_file)
    reference = protocol.Reference(protocol.torch_forward(loaded.model), loaded.tokenizer, taxonomy, loaded.max_tokens)
    answers = worker.tag(target, taxonomy_file, TEXTS)
    assert len(answers) == len(TEXTS)
    truncated = 0
    for text, said in zip(TEXTS, answers):
        want = reference.tag(text)
        truncated += want.truncated
        got = {topic["label"]: topic["probability"] for topic in said["topics"]}
        for label, probability in zip(taxonomy.labels, want.probabilities):
            assert got[label.name] == pytest.approx(probability, abs=tolerance), (text, label.name)
        np.testing.assert_allclose(said["embedding"], want.embedding, atol=tolerance, err_msg=text)
    assert truncated >= 2, "texts longer than the model's maximum belong to the comparison"


@pytest.mark.parametrize("name", checkpoints.SHAPES)
def test_worker_agrees_with_transformers(name, tmp_path):
    folder = checkpoints.save(tmp_path / "checkpoint", checkpoints.random_model(checkpoints.SHAPES[name]))
    loaded = export(folder, tmp_path / "bundle")
    for taxonomy in checkpoints.TAXONOMIES:
        compare(loaded, tmp_path / "bundle", taxonomy)


def test_weights_beside_the_model_file(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "EXTERNAL_BYTES", 1000)
    folder = checkpoints.save(tmp_path / "checkpoint", checkpoints.random_model(checkpoints.SHAPES["megatron-deep"]))
    loaded = export(folder, tmp_path / "bundle")
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["bundle.toml", "model.onnx", "model.onnx.data", "tokenizer.json"]
    modes = {(tmp_path / "bundle" / name).stat().st_mode for name in ("model.onnx", "model.onnx.data")}
    assert len(modes) == 1, "who may read the graph may read its weights"
    compare(loaded, tmp_path / "bundle", checkpoints.TAXONOMIES[0])


@pytest.mark.parametrize(("kind", "provider"), [("fp16", "cuda"), ("fp16", "tensorrt"), ("int8", "cuda")])
@pytest.mark.parametrize("name", ["bert-base", "megatron-deep"])
def test_lower_precision_stays_near(name, kind, provider, tmp_path):
    folder = checkpoints.save(tmp_path / "checkpoint", checkpoints.random_model(checkpoints.SHAPES[name]))
    loaded = export(folder, tmp_path / "bundle", precision=kind, provider=provider, allow_unverified=True)
    compare(loaded, tmp_path / "bundle", checkpoints.TAXONOMIES[0], tolerance={"fp16": 5e-3, "int8": 5e-2}[kind])


def spoil_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def other_contract(path):
    manifest = path.with_name(bundle.MANIFEST)
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("tcbert-graph/1", "tcbert-graph/0"), encoding="utf-8")


@pytest.mark.parametrize(("spoil", "named"), [(spoil_byte, "model.onnx"), (cut, "model.onnx"), (other_contract, "bundle.toml")])
def test_worker_refuses_a_spoilt_bundle(spoil, named, tmp_path):
    folder = checkpoints.save(tmp_path / "checkpoint", checkpoints.random_model(checkpoints.SHAPES["macbert-gelu-new"]))
    export(folder, tmp_path / "bundle")
    spoil(tmp_path / "bundle" / "model.onnx")
    done = worker.run(tmp_path / "bundle", checkpoints.TAXONOMIES[0], ["球"])
    assert done.returncode != 0 and done.stdout == ""
    assert named in done.stderr


def test_worker_says_that_a_bundle_is_unverified(tmp_path, monkeypatch):
    monkeypatch.setitem(verify.LIMITS, "fp32", verify.Limits(log_prob=0.0, cosine=1.1, same_label=1.0))
    folder = checkpoints.save(tmp_path / "checkpoint", checkpoints.random_model(checkpoints.SHAPES["macbert-gelu-new"]))
    export(folder, tmp_path / "bundle", allow_unverified=True)
    assert 'status = "unverified"' in (tmp_path / "bundle" / bundle.MANIFEST).read_text(encoding="utf-8")
    done = worker.run(tmp_path / "bundle", checkpoints.TAXONOMIES[0], ["球"])
    assert done.returncode == 0
    assert "WARN" in done.stderr and "compared" in done.stderr
