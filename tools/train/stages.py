"""What each stage does, with the recipe's numbers.

Owns which folder a stage reads and writes. Knows nothing of the command line's form.

    work/pretrained    pretrain    masked-language training
    work/teacher       teach       the counting teachers' soft labels
    work/tuned         tune        first student
    work/distilled     distil      second student: teachers and first student as teachers
    work/finished      finish      the same, a short while longer, with the held-out rows as well
    models/compact     quantise    bundle and fp16 weights
"""

import json
import logging

from . import bundle_files, corpus, measure, model as net, pretrain, softlabels, tune

log = logging.getLogger("train")
PRETRAIN_STEPS, PRETRAIN_PEAK, LONG_SHARE = 6000, 8e-4, 0.5
TUNE = tune.Recipe(steps=1000, peak=5e-4)
DISTIL = tune.Recipe(steps=2000, peak=4e-4)
FINISH = tune.Recipe(steps=500, peak=2e-4)


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
        unseen = frozenset(t for rows in corpus.held_out(self.data).values() for t in rows.texts)
        pretrain.run(
            self.data, self.tokenizer, self.folder("pretrained"), self.steps(PRETRAIN_STEPS), PRETRAIN_PEAK, self.seed,
            self.options.start, self.scale, LONG_SHARE, unseen,
        )  # fmt: skip

    def teach(self):
        softlabels.run(self.data, self.tokenizer, self.folder("teacher"), False, self.seed, self.scale)

    def tune(self):
        self._tune(self.folder("teacher") / "rows.pkl", "pretrained", "tuned", TUNE, 0, self._held_out())

    def distil(self):
        rows = self._rows_of_student("tuned", "teacher", "distilled", shipped=False)
        self._tune(rows, "tuned", "distilled", DISTIL, 1, self._held_out())

    def finish(self):
        rows = self._rows_of_student("distilled", "teacher-finish", "finished", shipped=True)
        self._tune(rows, "distilled", "finished", FINISH, 2, None)

    def quantise(self):
        bundle_files.write(self.folder("finished"), self.tokenizer, self.options.vocab, self.options.out)

    def evaluate(self):
        """int8 against fp32 for the weights before `finish`, which have not seen the rows they are measured on."""
        unseen = self.folder("distilled") / "bundle"
        if not unseen.exists():
            bundle_files.write(self.folder("distilled"), self.tokenizer, self.options.vocab, unseen)
        scores = bundle_files.compare(unseen, self.tokenizer, self.words, self.data, self.scale)
        scores["shipped"] = bundle_files.agreement(self.options.out, self.tokenizer, self.words, self.data, self.scale)
        print(json.dumps(scores, ensure_ascii=False, indent=2))

    def _held_out(self):
        return measure.HeldOut(self.data, self.tokenizer, self.words, self.scale)

    def _tune(self, rows, start, out, recipe, turn, measured):
        recipe = tune.replace(recipe, steps=self.steps(recipe.steps))
        tune.run(rows, self.tokenizer, self.words, self.folder(start), self.folder(out), recipe, self.seed + turn, measured)

    def _rows_of_student(self, student, teacher, out, shipped):
        """The student reads the unlabelled titles with their keywords; its opinions join the teachers'."""
        rows = self.folder(out) / "rows.pkl"
        if not rows.exists():
            self.folder(out).mkdir(parents=True, exist_ok=True)
            softlabels.run(
                self.data, self.tokenizer, self.folder(teacher), shipped, self.seed, self.scale,
                student=lambda texts: student_opinions(self.folder(student), self.tokenizer, texts, self.words), rows=rows,
            )  # fmt: skip
        return rows


def student_opinions(folder, tokenizer, texts, words):
    """A tuned network's probabilities in both news label spaces."""
    from scipy.special import softmax

    spaces = ("tnews", "thucnews")
    scores, _ = measure.infer(net.load(folder), tokenizer, texts, corpus.NEWS_PROMPTS[0], spaces, words)
    return {space: softmax(scores[space], axis=1) for space in spaces}
