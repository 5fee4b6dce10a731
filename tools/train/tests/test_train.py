"""Run with: PYTHONPATH=tools pytest tools/train/tests. Needs the packages of both requirements files and no data."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from train import bundle_files, corpus, measure, model as net, pretrain, softlabels, teacher, tune

VOCAB = Path(__file__).resolve().parents[3] / "models" / "compact" / "vocab.txt"
SMALL = net.Shape(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def tokenizer():
    return corpus.build_tokenizer(VOCAB)


def test_capitals_are_known_words(tokenizer):
    ids = tokenizer.encode("NBA 和 iPhone", add_special_tokens=False).ids
    assert corpus.UNK not in ids
    assert ids == tokenizer.encode("nba 和 iphone", add_special_tokens=False).ids


def test_weights_are_those_of_a_published_bert(tmp_path):
    torch.manual_seed(0)
    ours = net.CompactBert(SMALL).eval()
    net.save(ours, tmp_path)
    theirs = transformers.BertForMaskedLM.from_pretrained(str(tmp_path)).eval()
    ids = torch.randint(5, 21000, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).logits
        found = ours.logits(ours.encode(ids, mask))
    assert torch.allclose(expected[mask.bool()], found[mask.bool()], atol=1e-4)


def test_label_scores_rank_as_mean_log_probabilities():
    torch.manual_seed(1)
    model = net.CompactBert(SMALL).eval()
    rows, tokens = torch.randn(3, 2, 32), torch.tensor([[700, 800], [900, 801], [702, 1200]])
    with torch.no_grad():
        scores = tune.label_scores(model, rows, tokens)
        logs = (rows @ model.words.weight.T + model.head_bias).log_softmax(-1)
    mean = torch.stack([(logs[:, 0, a] + logs[:, 1, b]) / 2 for a, b in tokens.tolist()], 1)
    difference = scores - mean
    assert torch.allclose(difference, difference[:, :1].expand_as(difference), atol=1e-4)


def test_words_are_hidden_whole():
    rng = np.random.default_rng(0)
    ids, words = np.arange(1000, 1012), np.repeat(np.arange(4), 3)
    for _ in range(50):
        _, target = pretrain.mask_words(ids, words, rng, 0.3)
        asked = (target >= 0).reshape(4, 3)
        assert asked.any()
        assert (asked.all(1) == asked.any(1)).all()


def test_held_back_rows_never_teach_themselves():
    seen = []
    teacher.out_of_fold(lambda kept, asked: seen.append((set(kept), set(asked))) or np.zeros((len(asked), 2)), 20, 2, 4, 0)
    assert all(not kept & asked for kept, asked in seen)
    assert set().union(*(asked for _, asked in seen)) == set(range(20))


def test_repeats_below_one_draw_a_share():
    group = softlabels.Group(("a{label}b",), [[1] * 5] * 4000, [], {}, {}, np.full(4000, 0.35))
    rows = sum(len(chosen) for _, chosen in tune.epoch_batches([group], np.random.default_rng(0)))
    assert 1200 < rows < 1600


def test_contrast_is_lower_when_like_rows_are_near():
    targets = [torch.eye(2)[[0, 0, 1, 1]]]
    near = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    far = near[[0, 2, 1, 3]]
    assert tune.contrast(near, targets) < tune.contrast(far, targets)


def test_nearest_neighbour():
    reference = np.eye(3)
    asked = np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    assert measure.nearest(reference, np.array([5, 6, 7]), asked, np.array([5, 6])) == 0.5


def test_interval_holds_the_share():
    low, high = bundle_files.interval(0.87, 2500)
    assert low < 0.87 < high and 0.02 < high - low < 0.03
