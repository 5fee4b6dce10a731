"""What each stage does, with the recipe's numbers.

Owns which folder a stage reads and writes. Knows nothing of the command line's form.

    work/pretrained    pretrain    masked-language training
    work/teacher       teach       the counting teachers' soft labels
    work/tuned         tune        first student
    work/distilled     distil      second student: teachers and first student as teachers
    work/finished      finish      the same, longer, with more of THUCNews
    work/reread        reread      masked-language training again, longer
    work/polished      polish      one label space for all news, titles joined to short articles
    models/compact     quantise    bundle and fp16 weights
"""

import json
import logging

from . import bundle_files, corpus, finish, joint, measure, model as net, pretrain, softlabels, tune

log = logging.getLogger("train")
# The runs that made the shipped weights left their schedules early: processor time was short. A patient run may
# raise `stop`.
PRETRAIN_STEPS, PRETRAIN_STOP, PRETRAIN_PEAK, LONG_SHARE = 6000, 600, 8e-4, 0.5
TUNE = tune.Recipe(steps=1000, stop=726, peak=5e-4, masked_share=0.15, language=0.4, vocabulary=0)
DISTIL = tune.Recipe(steps=1400, stop=1218, peak=4e-4)
FINISH = tune.Recipe(steps=2600, peak=3.5e-4, masked_share=0.13)
REREAD_STEPS, REREAD_LONG_SHARE = 4000, 0.8
POLISH = tune.Recipe(steps=2600, peak=4e-4, masked_share=0.15, language=0.3, vocabulary=0, joined=0.2)


class Stages:
    """Every stage by its name; `options` are those of the command line."""

    def __init__(self, options):
        self.options, self.data, self.scale, self.seed = options, options.data, options.scale, options.seed
        self.tokenizer = corpus.build_tokenizer(options.vocab)
        self.words = corpus.label_words(options.data)

    def folder(self, name: str):
        return self.options.work / name

    def steps(self, planned: int) -> int:
        return self.options.steps or max(3, round(planned * self.scale))

    def pretrain(self):
        self._pretrain("pretrained", self.options.start, PRETRAIN_STEPS, LONG_SHARE, self.steps(PRETRAIN_STOP))

    def teach(self):
        softlabels.run(self.data, self.tokenizer, self.folder("teacher"), self.seed, self.scale, long=False)

    def tune(self):
        self._tune(self.folder("teacher") / "rows.pkl", "pretrained", "tuned", TUNE, corpus.held_out(self.data), carry=False)

    def distil(self):
        """The first student reads the unlabelled titles with their keywords; its opinions join the teachers'."""
        rows = self.folder("distilled") / "rows.pkl"
        if not rows.exists():
            rows.parent.mkdir(parents=True, exist_ok=True)
            softlabels.run(
                self.data, self.tokenizer, self.folder("teacher"), self.seed, self.scale,
                student=lambda texts: student_opinions(self.folder("tuned"), self.tokenizer, texts, self.words), rows=rows,
            )  # fmt: skip
        self._tune(rows, "tuned", "distilled", DISTIL, corpus.held_out(self.data), carry=True)

    def finish(self):
        rows = self.folder("finished") / "rows.pkl"
        if not rows.exists():
            rows.parent.mkdir(parents=True, exist_ok=True)
            finish.run(self.data, self.tokenizer, self.folder("distilled") / "rows.pkl", rows, self.seed, self.scale)
        self._tune(rows, "distilled", "finished", FINISH, corpus.held_out_of_shipped(self.data), carry=True)

    def reread(self):
        self._pretrain("reread", self.folder("finished"), REREAD_STEPS, REREAD_LONG_SHARE)

    def polish(self):
        rows, words = self.folder("polished") / "rows.pkl", {**self.words, joint.SPACE: joint.space_words(self.words)}
        if not rows.exists():
            rows.parent.mkdir(parents=True, exist_ok=True)
            joint.run(self.data, self.tokenizer, words, self.folder("finished") / "rows.pkl", rows, self.scale, self.seed)
        self._tune(rows, "reread", "polished", POLISH, corpus.held_out_of_shipped(self.data), carry=False, words=words)

    def quantise(self):
        bundle_files.write(self.folder("polished"), self.tokenizer, self.options.vocab, self.options.out)

    def evaluate(self):
        """int8 against fp32 of the shipped weights, on rows that they have not seen."""
        sets = corpus.held_out_of_shipped(self.data)
        scores = bundle_files.compare(self.options.out, self.tokenizer, self.words, self.data, sets, self.scale)
        print(json.dumps(scores, ensure_ascii=False, indent=2))

    def _pretrain(self, out, start, steps, long_share, stop=None):
        unseen = frozenset(t for rows in corpus.held_out(self.data).values() for t in rows.texts)
        pretrain.run(
            self.data, self.tokenizer, self.folder(out), self.steps(steps), PRETRAIN_PEAK, self.seed, start, self.scale, long_share, unseen, stop
        )  # fmt: skip

    def _tune(self, rows, start, out, recipe, sets, carry, words=None):
        recipe = tune.replace(recipe, steps=self.steps(recipe.steps), stop=recipe.stop and self.steps(recipe.stop))
        measured = measure.HeldOut(self.data, self.tokenizer, self.words, sets, self.scale)
        tune.run(rows, self.tokenizer, words or self.words, self.folder(start), self.folder(out), recipe, self.seed, measured, carry)


def student_opinions(folder, tokenizer, texts, words):
    """A tuned network's probabilities in both news label spaces."""
    from scipy.special import softmax

    spaces = ("tnews", "thucnews")
    scores, _ = measure.infer(net.load(folder), tokenizer, texts, corpus.NEWS_PROMPTS[0], spaces, words)
    return {space: softmax(scores[space], axis=1) for space in spaces}
