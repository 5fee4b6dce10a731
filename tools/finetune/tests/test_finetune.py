"""Fine-tuning learns, goes on where it was stopped, and ends in a bundle; what it cannot read is refused with its place."""

import json

import pytest
import torch

from tools.export import checkpoint, verify
from tools.export.errors import Refusal
from tools.export.tests import checkpoints
from tools.finetune import __main__ as command
from tools.finetune import data, loop, task

TNEWS = checkpoints.ROOT / "config" / "taxonomies" / "tnews.toml"
PER_TOPIC = 17  # sentences.txt goes through the fifteen topics of verify.LABELS in order, seventeen each


def lines(topics: int) -> str:
    sentences = verify.SENTENCES.read_text(encoding="utf-8").splitlines()[: topics * PER_TOPIC]
    rows = [{"sentence": text, "label_desc": verify.LABELS[index // PER_TOPIC]} for index, text in enumerate(sentences)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path):
    model = checkpoints.random_model(checkpoints.Shape("Bert", 32, 2, 2))
    for parameter in model.parameters():
        parameter.data *= 0.3 if parameter.dim() == 2 else 1.0
    (tmp_path / "train.jsonl").write_text(lines(4), encoding="utf-8")
    return checkpoints.save(tmp_path / "checkpoint", model)


def call(folder, monkeypatch, capsys, *more):
    root = folder.parent
    line = ["finetune", "--checkpoint", str(folder), "--taxonomy", "tnews", "--train", str(root / "train.jsonl"), "--name", "small",
            "--work", str(root / "work"), "--out", str(root / "bundle"), "--batch", "8", "--learning-rate", "3e-3", "--threads", "1", *more]  # fmt: skip
    monkeypatch.setattr("sys.argv", line)
    code = command.main()
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if code == 0 else printed.err


def test_it_learns_and_ends_in_a_bundle(folder, monkeypatch, capsys):
    code, said = call(folder, monkeypatch, capsys, "--dev", str(folder.parent / "train.jsonl"), "--test", str(folder.parent / "train.jsonl"), "--epochs", "12", "--patience", "12")
    assert code == 0
    assert said["test_after"]["accuracy"] > max(0.6, said["test_before"]["accuracy"] + 0.3)
    assert said["history"][-1]["loss"] < said["history"][1]["loss"]
    assert 'status = "verified"' in (folder.parent / "bundle" / "bundle.toml").read_text(encoding="utf-8")
    assert (folder.parent / "work" / "curve.png").read_bytes().startswith(b"\x89PNG")


def prepare(folder, work, epochs=3):
    loaded = checkpoint.load(str(folder))
    training, held_out = data.split(data.read(folder.parent / "train.jsonl", TNEWS), seed=1)
    plan = loop.Plan("c", str(TNEWS), len(training), epochs=epochs, batch=8, learning_rate=3e-3, patience=9)
    job = task.Task(loaded.tokenizer, data.read_taxonomy(TNEWS), plan.max_tokens)
    return loop.Run(work, plan, loaded, job, training, held_out)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(folder, tmp_path, monkeypatch):
    whole = prepare(folder, tmp_path / "whole")
    whole.train()
    stopped = prepare(folder, tmp_path / "stopped")
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)  # after each batch
    steps = 0
    loss = task.Task.loss

    def until(*arguments):
        nonlocal steps
        steps += 1
        if steps > 12:
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(task.Task, "loss", until)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    monkeypatch.setattr(task.Task, "loss", loss)
    again = prepare(folder, tmp_path / "stopped")
    again.train()
    assert [point["epoch"] for point in again.history] == [0, 1, 2, 3]
    for one, other in zip(whole.history, again.history):
        assert one["accuracy"] == other["accuracy"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5) if one["loss"] else other["loss"] is None
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(tensor, again.model.state_dict()[name], atol=1e-5, rtol=1e-4)


def test_another_plan_does_not_go_on(folder, tmp_path):
    prepare(folder, tmp_path / "work", epochs=1).train()
    with pytest.raises(Refusal, match="epochs"):
        prepare(folder, tmp_path / "work", epochs=2).train()


def test_it_stops_early(folder, tmp_path):
    run = prepare(folder, tmp_path / "work")
    run.history = [{"epoch": 0, "loss": None, "accuracy": 0.5}, *({"epoch": n, "loss": 1.0, "accuracy": 0.4} for n in range(1, 9))]
    assert not run.exhausted()
    run.history.append({"epoch": 9, "loss": 1.0, "accuracy": 0.5})
    assert run.exhausted()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"sentence": "球", "label": "999"}', "line 2: '999' is no label"),
        ('{"sentence": "球"}', "line 2 has no text"),
        ('{"label": "体育"}', "line 2 has no text"),
        ("{", "line 2 is not JSON"),
        ("没有制表符", "line 2 is neither"),
    ],
)
def test_lines_that_cannot_be_used(line, words, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"sentence": "球赛", "label": 103}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(Refusal, match=words):
        data.read(path, TNEWS)


def test_labels_are_found_by_name_code_and_tab(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a", "label": 103}\n{"content": "b", "label": "news_sports"}\n{"text": "c", "topic": "体育"}\nd\t体育\n', encoding="utf-8")
    assert {example.label for example in data.read(path, TNEWS)} == {verify.LABELS.index("体育")}


def test_words_of_unequal_length_are_trained_and_told_apart(folder, tmp_path):
    ragged = checkpoints.ROOT / "tests" / "goldens" / "taxonomies" / "ragged.toml"
    taxonomy = data.read_taxonomy(ragged)
    loaded = checkpoint.load(str(folder))
    job = task.Task(loaded.tokenizer, taxonomy, 64)
    examples = [data.Example(f"{label.words[0]}的消息第{n}条", index) for index, label in enumerate(taxonomy.labels) for n in range(6)]
    plan = loop.Plan("c", str(ragged), len(examples), epochs=15, batch=8, learning_rate=3e-3, patience=15, max_tokens=64)
    run = loop.Run(tmp_path / "work", plan, loaded, job, examples, examples)
    run.train()
    best = max(point["accuracy"] for point in run.history)
    assert best > run.history[0]["accuracy"] + 0.3
