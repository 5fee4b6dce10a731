//! Texts in, topics and embeddings out: composes plan, model, scoring and pooling.
//! Knows a taxonomy and a tokenizer as built values; must not know records or stores, nor which
//! runtime runs the model.

use std::path::Path;
use std::sync::Arc;

use super::fingerprint::{self, Fingerprints, ModelIdentity};
use super::label::{best_labels, probabilities, raise_scores};
use super::pool::normalise;
use super::settings::TaggingSettings;
use super::verbalizer::{Pass, PlanError, PlanReport, VerbalizerPlan};
use super::whiten::{Whitening, WhiteningError};
use super::{NotFinite, Tagging, TopicScore};
use crate::model::{Model, ModelError, PassInput, PassOutput};
use crate::taxonomy::{OTHER, Taxonomy, TaxonomyError};
use crate::tokenize::{EncodedText, PromptTokenizer};

/// Why texts cannot be tagged.
#[derive(Debug, thiserror::Error)]
pub enum TaggerError {
    /// The taxonomy cannot be used.
    #[error(transparent)]
    Taxonomy(#[from] TaxonomyError),
    /// The taxonomy does not go with the tokenizer.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The whitening cannot be used.
    #[error(transparent)]
    Whitening(#[from] WhiteningError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// More tokens are configured than the model takes.
    #[error("tagging.max_tokens is {wanted}, but the model takes {max_tokens}; lower it or use 0")]
    TooManyTokens {
        /// What is configured.
        wanted: usize,
        /// What the model takes.
        max_tokens: usize,
    },
    /// The model answers in another shape than it was asked.
    #[error("the model gave {found} values of {what} where {wanted} were due")]
    Shape {
        /// Which output.
        what: &'static str,
        /// How many it gave.
        found: usize,
        /// How many it should have given.
        wanted: usize,
    },
    /// The empty document, on which labels are calibrated, has no score.
    #[error(
        "the labels cannot be calibrated: the model gave a value that is not a number for an empty document"
    )]
    Calibration,
    /// Calibration is on, but [`Tagger::calibrate`] was not called.
    #[error("the tagger was not calibrated before its first text")]
    NotCalibrated,
}

/// Tags texts with one taxonomy; shared by all inference threads, each with a model of its own.
#[derive(Debug)]
pub struct Tagger {
    tokenizer: Arc<PromptTokenizer>,
    taxonomy: Taxonomy,
    plan: VerbalizerPlan,
    report: PlanReport,
    hidden_size: usize,
    top_k: usize,
    topics_threshold: f32,
    whitening: Option<Whitening>,
    /// Scores of the empty document, one a label; empty before calibration.
    prior: Vec<f32>,
    fingerprints: Fingerprints,
}

impl Tagger {
    /// Loads the taxonomy and the whitening that `settings` name and plans the passes.
    /// Where calibration is on, [`Tagger::calibrate`] must follow.
    ///
    /// # Errors
    /// When taxonomy or whitening cannot be used, or do not go with model and tokenizer.
    pub fn new(
        settings: &TaggingSettings,
        tokenizer: Arc<PromptTokenizer>,
        model: &ModelIdentity,
    ) -> Result<Self, TaggerError> {
        let taxonomy = settings.load_taxonomy()?;
        Self::with_taxonomy(taxonomy, settings, tokenizer, model)
    }

    /// As [`Tagger::new`], with a taxonomy that is already loaded.
    ///
    /// # Errors
    /// When taxonomy or whitening do not go with model and tokenizer.
    pub fn with_taxonomy(
        mut taxonomy: Taxonomy,
        settings: &TaggingSettings,
        tokenizer: Arc<PromptTokenizer>,
        model: &ModelIdentity,
    ) -> Result<Self, TaggerError> {
        taxonomy.threshold = settings.threshold.unwrap_or(taxonomy.threshold);
        taxonomy.temperature = settings.temperature.unwrap_or(taxonomy.temperature);
        taxonomy.calibration = settings.calibration.unwrap_or(taxonomy.calibration);
        let max_tokens = match settings.max_tokens {
            0 => model.max_tokens,
            wanted if wanted <= model.max_tokens => wanted,
            wanted => {
                return Err(TaggerError::TooManyTokens {
                    wanted,
                    max_tokens: model.max_tokens,
                });
            }
        };
        let (plan, report) =
            VerbalizerPlan::new(&taxonomy, settings.prompt, &tokenizer, max_tokens)?;
        let prompt = taxonomy.prompts.get(settings.prompt);
        let prompt = prompt.map(ToString::to_string).unwrap_or_default();
        let plain = fingerprint::of_embedding(model, tokenizer.fingerprint(), &prompt);
        let whitening = load_whitening(&settings.whitening, &plain, model.hidden_size)?;
        let fingerprints = Fingerprints::new(plain, whitening.as_ref(), &taxonomy);
        Ok(Self {
            tokenizer,
            taxonomy,
            plan,
            report,
            hidden_size: model.hidden_size,
            top_k: settings.top_k,
            topics_threshold: settings.topics_threshold as f32,
            whitening,
            prior: Vec::new(),
            fingerprints,
        })
    }

    /// Scores the empty document, where calibration is on; otherwise does nothing.
    ///
    /// # Errors
    /// When the model fails or gives no number.
    pub fn calibrate(&mut self, model: &mut dyn Model) -> Result<(), TaggerError> {
        if !self.taxonomy.calibration {
            return Ok(());
        }
        let empty = self.encode("");
        let outputs = self.run(model, &[&empty])?;
        let prior = self.label_scores(1, &outputs)?;
        if !prior.iter().all(|score| score.is_finite()) {
            return Err(TaggerError::Calibration);
        }
        self.prior = prior;
        Ok(())
    }

    /// Tokenises a text for this taxonomy's prompt and marks whether it fits.
    pub fn encode(&self, text: &str) -> EncodedText {
        let mut encoded = self.tokenizer.encode(text, self.plan.text_limit());
        encoded.truncated = self.plan.truncates(&encoded);
        encoded
    }

    /// Tokens of the row that a text becomes, for planning batches.
    pub fn row_tokens(&self, text: &EncodedText) -> usize {
        self.plan.row_tokens(text)
    }

    /// Tags texts, in their order; one that the model gives no numbers for is an error of its own.
    ///
    /// # Errors
    /// When the model fails, or [`Tagger::calibrate`] is due.
    pub fn tag(
        &self,
        model: &mut dyn Model,
        texts: &[&EncodedText],
    ) -> Result<Vec<Result<Tagging, NotFinite>>, TaggerError> {
        let outputs = self.run(model, texts)?;
        self.score(texts, &outputs)
    }

    /// Embeds texts as [`Tagger::tag`] does, without topics and the passes that only they need.
    ///
    /// # Errors
    /// When the model fails.
    pub fn embed(
        &self,
        model: &mut dyn Model,
        texts: &[&EncodedText],
    ) -> Result<Vec<Result<Vec<f32>, NotFinite>>, TaggerError> {
        let Some(pass) = self.plan.passes().get(self.plan.embedding_pass()) else {
            return Ok(Vec::new());
        };
        let output = self.run_pass(model, pass, texts)?;
        let embeddings = output
            .sentence_embedding
            .chunks_exact(self.hidden_size.max(1));
        let embeddings = embeddings.map(|row| self.finish_embedding(row));
        Ok(embeddings.collect())
    }

    /// The inputs of all passes over `texts`: the first part of [`Tagger::tag`].
    pub fn inputs(&self, texts: &[&EncodedText]) -> Vec<PassInput> {
        let passes = self.plan.passes().iter();
        passes.map(|pass| self.plan.input(pass, texts)).collect()
    }

    /// Turns the outputs of all passes into taggings: the last part of [`Tagger::tag`].
    ///
    /// # Errors
    /// When an output has another shape than it should, or [`Tagger::calibrate`] is due.
    pub fn score(
        &self,
        texts: &[&EncodedText],
        outputs: &[PassOutput],
    ) -> Result<Vec<Result<Tagging, NotFinite>>, TaggerError> {
        if self.taxonomy.calibration && self.prior.is_empty() {
            return Err(TaggerError::NotCalibrated);
        }
        let labels = self.plan.labels();
        let scores = self.label_scores(texts.len(), outputs)?;
        let embedded = outputs.get(self.plan.embedding_pass());
        let embeddings = embedded.map(|output| output.sentence_embedding.as_slice());
        let embeddings = embeddings
            .unwrap_or_default()
            .chunks_exact(self.hidden_size.max(1));
        let rows = texts
            .iter()
            .zip(scores.chunks_exact(labels))
            .zip(embeddings);
        let taggings = rows.map(|((text, scores), embedding)| self.finish(text, scores, embedding));
        Ok(taggings.collect())
    }

    /// The labels' scores from the outputs of all passes, `[rows, labels]`; the prior is not subtracted.
    ///
    /// # Errors
    /// When an output has another shape than it should.
    pub fn label_scores(
        &self,
        rows: usize,
        outputs: &[PassOutput],
    ) -> Result<Vec<f32>, TaggerError> {
        let passes = self.plan.passes();
        expect("passes", outputs.len(), passes.len())?;
        let labels = self.plan.labels();
        let mut scores = vec![f32::NEG_INFINITY; rows * labels];
        for (pass, output) in passes.iter().zip(outputs) {
            self.check_shape(pass, output, rows)?;
            let label_tokens = pass.label_token_ids.len();
            let log_probs = output
                .label_log_probs
                .chunks_exact(pass.masks * label_tokens);
            for (scores, row) in scores.chunks_exact_mut(labels).zip(log_probs) {
                raise_scores(scores, &pass.words, row, label_tokens);
            }
        }
        Ok(scores)
    }

    /// What vectors and topics of this tagger depend on.
    pub fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints
    }

    /// The taxonomy, with the overrides of the settings.
    pub fn taxonomy(&self) -> &Taxonomy {
        &self.taxonomy
    }

    /// The passes that each text takes.
    pub fn plan(&self) -> &VerbalizerPlan {
        &self.plan
    }

    /// How the taxonomy's words fare with the model's vocabulary.
    pub fn report(&self) -> &PlanReport {
        &self.report
    }

    /// Width of the embeddings.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// The outputs of all passes over `texts`: the middle part of [`Tagger::tag`].
    ///
    /// # Errors
    /// When the model fails.
    pub fn run(
        &self,
        model: &mut dyn Model,
        texts: &[&EncodedText],
    ) -> Result<Vec<PassOutput>, TaggerError> {
        let passes = self.plan.passes().iter();
        passes
            .map(|pass| self.run_pass(model, pass, texts))
            .collect()
    }

    fn run_pass(
        &self,
        model: &mut dyn Model,
        pass: &Pass,
        texts: &[&EncodedText],
    ) -> Result<PassOutput, TaggerError> {
        if texts.is_empty() {
            return Ok(PassOutput::default());
        }
        let output = model.run(&self.plan.input(pass, texts))?;
        self.check_shape(pass, &output, texts.len())?;
        Ok(output)
    }

    fn check_shape(
        &self,
        pass: &Pass,
        output: &PassOutput,
        rows: usize,
    ) -> Result<(), TaggerError> {
        let log_probs = rows * pass.masks * pass.label_token_ids.len();
        expect("label_log_probs", output.label_log_probs.len(), log_probs)?;
        let embeddings = rows * self.hidden_size;
        expect(
            "sentence_embedding",
            output.sentence_embedding.len(),
            embeddings,
        )
    }

    fn finish(
        &self,
        text: &EncodedText,
        scores: &[f32],
        embedding: &[f32],
    ) -> Result<Tagging, NotFinite> {
        let mut scores = scores.to_vec();
        // Before calibration, and without it, there is no prior to subtract.
        for (score, prior) in scores.iter_mut().zip(&self.prior) {
            *score -= prior;
        }
        let probabilities = probabilities(&scores, self.taxonomy.temperature).ok_or(NotFinite)?;
        let embedding = self.finish_embedding(embedding)?;
        let topics = best_labels(&probabilities, self.top_k).into_iter();
        let topics = topics.filter_map(|label| {
            Some(TopicScore {
                label: self.taxonomy.labels.get(label)?.name.clone(),
                probability: probabilities.get(label).copied()?,
            })
        });
        let mut topics: Vec<TopicScore> = topics.collect();
        // A taxonomy has at least one label.
        let best = topics.first().cloned().ok_or(NotFinite)?;
        topics.retain(|topic| topic.probability >= self.topics_threshold);
        let known = f64::from(best.probability) >= self.taxonomy.threshold;
        Ok(Tagging {
            topic: if known { best.label } else { OTHER.to_owned() },
            probability: best.probability,
            topics,
            embedding,
            truncated: text.truncated,
            unknown_tokens: text.unknown_tokens,
        })
    }

    fn finish_embedding(&self, row: &[f32]) -> Result<Vec<f32>, NotFinite> {
        if !row.iter().all(|value| value.is_finite()) {
            return Err(NotFinite);
        }
        let mut embedding = row.to_vec();
        normalise(&mut embedding);
        if let Some(whitening) = &self.whitening {
            whitening.apply(&mut embedding);
        }
        Ok(embedding)
    }
}

fn expect(what: &'static str, found: usize, wanted: usize) -> Result<(), TaggerError> {
    if found == wanted {
        return Ok(());
    }
    Err(TaggerError::Shape {
        what,
        found,
        wanted,
    })
}

fn load_whitening(
    path: &str,
    embeddings: &str,
    hidden_size: usize,
) -> Result<Option<Whitening>, TaggerError> {
    if path.is_empty() {
        return Ok(None);
    }
    let whitening = Whitening::load(Path::new(path))?;
    whitening.check_origin(embeddings)?;
    if whitening.dimensions() != hidden_size {
        return Err(TaggerError::Whitening(WhiteningError::Dimensions {
            found: hidden_size,
            wanted: whitening.dimensions(),
        }));
    }
    Ok(Some(whitening))
}

#[cfg(test)]
mod tests;
