"""What each stage does, with the recipe's numbers.

Owns which folder a stage reads and writes. Knows nothing of the command line's form.

    work/pretrained    pretrain    masked-language training
    work/teacher       teach       the counting teachers' soft labels
    work/tuned         tune        first student
    work/distilled     distil      second student: teachers and first student as teachers, one label space for all news
    work/settled       settle      the second student goes on, with more weight on its embedding
    work/ngrams        ngrams      on from there, each token with what the counting teachers know of it
    work/bags          bags        on, with many bags of pieces of titles
    work/finished      finish      on, with fewer of them, articles of every topic, more weight on the embedding; the mean of several runs
    work/sentences     sentences   on, with what a sentence encoder holds to be alike; queries and passages besides
    models/compact     quantise    bundle and fp16 weights
"""

import json
import logging
import pickle

from . import bundle_files, corpus, crops, encoder, joint, measure, model as net, ngrams, pretrain, sentences, softlabels, tune

log = logging.getLogger("train")
PRETRAIN_STEPS, PRETRAIN_PEAK, LONG_SHARE = 1500, 8e-4, 0.8
TUNE = tune.Recipe(steps=1000, peak=5e-4, masked_share=0.15, language=0.4)
DISTIL = tune.Recipe(steps=2100, peak=6e-4, masked_share=0.15, language=0.3, joined=0.2)
SETTLE = tune.Recipe(steps=1000, peak=4e-4, masked_share=0.15, language=0.1, joined=0.2, prototypes=0.7, contrast=0.35)
NGRAMS = tune.Recipe(steps=3500, peak=7e-4, dropout=0.0, masked_share=0.1, language=0.1, prototypes=0.5, contrast=0.25, second_prompt=0.1, grams=1.0)
BAGS = tune.replace(NGRAMS, steps=15000, peak=8e-4, masked_share=0.08, language=0.05, joined=0.15)
FINISH = tune.replace(BAGS, steps=2000, peak=5e-4, prototypes=0.8, contrast=0.4, grams=0.5, joined=0.4)
FINISH_RUNS = 3
SENTENCES = tune.replace(FINISH, steps=9500, peak=7e-4, prototypes=0.6, contrast=0.25, grams=0.0, joined=0.3, places=1.3)


class Stages:
    """Every stage by its name; `options` are those of the command line."""

    def __init__(self, options):
        self.options, self.data, self.scale, self.seed = options, options.data, options.scale, options.seed
        self.tokenizer = corpus.build_tokenizer(options.vocab)
        self.words = corpus.label_words(options.data)
        self.news_words = {**self.words, corpus.NEWS_SPACE: joint.space_words(self.words)}

    def folder(self, name: str):
        return self.options.work / name

    def steps(self, planned: int) -> int:
        return self.options.steps or max(3, round(planned * self.scale))

    def pretrain(self):
        unseen = frozenset(t for rows in corpus.held_out(self.data).values() for t in rows.texts)
        pretrain.run(
            self.data, self.tokenizer, self.folder("pretrained"), self.steps(PRETRAIN_STEPS), PRETRAIN_PEAK, self.seed,
            self.options.start, self.scale, LONG_SHARE, unseen,
        )  # fmt: skip

    def teach(self):
        softlabels.run(self.data, self.tokenizer, self.folder("teacher"), self.seed, self.scale)

    def tune(self):
        sets = corpus.held_out(self.data)
        self._tune(self.folder("teacher") / "rows.pkl", "tuned", TUNE, sets, self.words)

    def distil(self):
        """Starts from the pre-trained weights again: what the first student knows comes back as soft labels."""
        self._tune_news("distilled", DISTIL, self._second_rows("tuned"))

    def settle(self):
        make = lambda rows: joint.lean(self.folder("distilled") / "rows.pkl", rows, self.data, self.scale, self.seed)
        self._tune_news("settled", SETTLE, make, start="distilled")

    def ngrams(self):
        self._tune_news("ngrams", NGRAMS, self._second_rows("settled"), start="settled")

    def bags(self):
        make = lambda rows: crops.run_bags(self.data, self.tokenizer, self.folder("ngrams") / "rows.pkl", rows, self.seed, self.scale)
        self._tune_news("bags", BAGS, make, start="ngrams")

    def finish(self):
        """Several runs from the same weights, which stay near enough for the mean of their weights to work; it evens out what one run gains by chance."""
        make = lambda rows: joint.calm(self.folder("bags") / "rows.pkl", rows, self.data, self.scale, self.seed)
        runs = [f"finished/{number}" for number in range(FINISH_RUNS)]
        for number, out in enumerate(runs):
            self._tune_news(out, FINISH, make, start="bags", rows="finished", seed=self.seed + number)
        net.save(net.averaged([net.load(self.folder(out)) for out in runs]), self.folder("finished"))

    def sentences(self):
        def make(rows):
            encode = encoder.Encoder(encoder.fetch(self.options.encoder), self.options.threads)
            sentences.run(self.data, self.tokenizer, self.words, self.folder("finished") / "rows.pkl", rows, encode, self.seed, self.scale)

        self._tune_news("sentences", SENTENCES, make, start="finished")

    def _second_rows(self, student: str):
        """What writes the rows of a second student, whose first one lies in `student`."""

        def make(rows):
            folder = rows.parent
            opinions = lambda texts: student_opinions(self.folder(student), self.tokenizer, texts, self.words)
            softlabels.run(self.data, self.tokenizer, self.folder("teacher"), self.seed, self.scale, opinions, folder / "titles.pkl")
            crops.run(self.data, self.tokenizer, folder / "titles.pkl", folder / "crops.pkl", self.seed, self.scale)
            joint.run(self.data, self.news_words, folder / "crops.pkl", rows, self.scale, self.seed)

        return make

    def _tune_news(self, out: str, recipe, make, start="pretrained", rows=None, seed=None):
        """Tunes in the joint space besides, on rows that `make(file)` writes once, into the folder `rows` or else `out`."""
        rows = self.folder(rows or out) / "rows.pkl"
        if not rows.exists():
            rows.parent.mkdir(parents=True, exist_ok=True)
            make(rows)
        known = self._table() if recipe.grams else None
        self._tune(rows, out, recipe, corpus.held_out_of_shipped(self.data), self.news_words, start, known, seed)

    def _table(self):
        """What n-grams say, counted once from the rows of the stage `ngrams`."""

        def make():
            (group,) = pickle.loads((self.folder("ngrams") / "rows.pkl").read_bytes())
            news = softlabels.News(self.data, self.scale, self.seed)
            first = 2 * len(news.tnews_texts)
            _, texts, labels = crops.titles_of(self.data, news, self.scale)
            return ngrams.build(news, (texts, labels), group.targets["tnews"][first : first + len(news.free_texts)], self.seed)

        return ngrams.table(self.folder("ngrams") / "table.pkl", make)

    def quantise(self):
        bundle_files.write(self.folder("sentences"), self.tokenizer, self.options.vocab, self.options.out)

    def evaluate(self):
        """int8 against fp32 of the shipped weights, on rows that they have not seen."""
        sets = corpus.held_out_of_shipped(self.data)
        scores = bundle_files.compare(self.options.out, self.tokenizer, self.words, self.data, sets, self.scale)
        print(json.dumps(scores, ensure_ascii=False, indent=2))

    def _tune(self, rows, out, recipe, sets, words, start="pretrained", known=None, seed=None):
        recipe = tune.replace(recipe, steps=self.steps(recipe.steps))
        measured = measure.HeldOut(self.data, self.tokenizer, words, sets, self.scale)
        tune.run(rows, self.tokenizer, words, self.folder(start), self.folder(out), recipe, self.seed if seed is None else seed, measured, known)


def student_opinions(folder, tokenizer, texts, words):
    """A tuned network's probabilities in both news label spaces."""
    from scipy.special import softmax

    spaces = ("tnews", "thucnews")
    scores, _ = measure.infer(net.load(folder), tokenizer, texts, corpus.NEWS_PROMPTS[0], spaces, words)
    return {space: softmax(scores[space], axis=1) for space in spaces}
