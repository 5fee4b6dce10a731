//! Texts in, topics and embeddings out: composes plan, model, scoring and pooling.
//! Knows a taxonomy and a tokenizer as built values; must not know records or stores, nor which
//! runtime runs the model.

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::label::{best_labels, probabilities, raise_scores};
use super::pool::normalise;
use super::settings::TaggingSettings;
use super::verbalizer::{Pass, PlanError, PlanReport, VerbalizerPlan};
use super::whiten::{Whitening, WhiteningError};
use super::{NotFinite, Tagging, TopicScore};
use crate::model::{Model, ModelError, PassInput, PassOutput};
use crate::taxonomy::{OTHER, Taxonomy, TaxonomyError};
use crate::tokenize::{EncodedText, PromptTokenizer};

/// Hexadecimal digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 32;

/// What a tagger must know of the model before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Changes whenever the weights do.
    pub fingerprint: String,
    /// Longest row that the model takes, in tokens.
    pub max_tokens: usize,
    /// Width of its sentence embedding.
    pub hidden_size: usize,
}

/// What vectors and topics depend on, as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprints {
    /// Model, tokenizer, prompt, whitening: vectors with different ones cannot be compared.
    pub embedding: String,
    /// The embedding's, taxonomy, calibration: topics with different ones mean different things.
    pub labelling: String,
}

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
        let plain = digest([
            "embedding",
            &model.fingerprint,
            tokenizer.fingerprint(),
            &prompt,
        ]);
        let whitening = load_whitening(&settings.whitening, &plain, model.hidden_size)?;
        let embedding = match &whitening {
            Some(whitening) => digest(["whitened", &plain, whitening.fingerprint()]),
            None => plain,
        };
        let labelling = labelling_fingerprint(&taxonomy, &embedding);
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
            fingerprints: Fingerprints {
                embedding,
                labelling,
            },
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

    fn run(
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

fn labelling_fingerprint(taxonomy: &Taxonomy, embedding: &str) -> String {
    let numbers = [
        taxonomy.threshold.to_string(),
        taxonomy.temperature.to_string(),
        taxonomy.calibration.to_string(),
    ];
    let mut parts = vec!["labelling", embedding, &taxonomy.name];
    parts.extend(numbers.iter().map(String::as_str));
    for label in &taxonomy.labels {
        parts.extend(["label", &label.name]);
        parts.extend(label.words.iter().map(String::as_str));
    }
    digest(parts)
}

/// Hashes parts with their lengths, so that no two lists of parts read the same.
fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let digits = hasher.finalize();
    let mut digits: String = digits.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.truncate(FINGERPRINT_DIGITS);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::twin::TwinModel;
    use crate::score::whiten::WhiteningFit;
    use crate::tokenize::tests::test_tokenizer;

    const TAXONOMY: &str = r#"
        name = "test"
        prompts = ["下面是一则关于{label}的新闻：", "关于{label}："]
        [[labels]]
        name = "体育"
        words = ["体育", "足球"]
        [[labels]]
        name = "财经"
        words = ["财经", "股"]
        [[labels]]
        name = "科技"
        words = ["科技"]
    "#;

    fn identity() -> ModelIdentity {
        ModelIdentity {
            fingerprint: "twin".to_owned(),
            max_tokens: 64,
            hidden_size: 8,
        }
    }

    fn tagger_of(settings: &TaggingSettings) -> Result<Tagger, TaggerError> {
        let taxonomy = Taxonomy::parse(TAXONOMY, "test").unwrap();
        Tagger::with_taxonomy(taxonomy, settings, Arc::new(test_tokenizer()), &identity())
    }

    fn tagger() -> Tagger {
        tagger_of(&TaggingSettings::default()).unwrap()
    }

    fn tag(tagger: &Tagger, texts: &[&str]) -> Vec<Tagging> {
        let encoded: Vec<EncodedText> = texts.iter().map(|text| tagger.encode(text)).collect();
        let encoded: Vec<&EncodedText> = encoded.iter().collect();
        let taggings = tagger.tag(&mut TwinModel::new(8), &encoded).unwrap();
        taggings.into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn tags_by_the_words_of_labels_in_the_order_of_the_texts() {
        let texts = ["足球，足球", "ab股", "新科技", "财经财经财经"];
        let taggings = tag(&tagger(), &texts);
        let topics: Vec<&str> = taggings
            .iter()
            .map(|tagging| tagging.topic.as_str())
            .collect();
        assert_eq!(topics, ["体育", "财经", "科技", "财经"]);
        for tagging in &taggings {
            assert_eq!(tagging.topics.len(), 3);
            assert_eq!(tagging.topics[0].label, tagging.topic);
            assert_eq!(tagging.topics[0].probability, tagging.probability);
            let sum: f32 = tagging.topics.iter().map(|topic| topic.probability).sum();
            assert!((sum - 1.0).abs() < 1e-5);
            let squares: f32 = tagging.embedding.iter().map(|value| value * value).sum();
            assert!((squares - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn an_answer_does_not_depend_on_the_batch() {
        let tagger = tagger();
        let texts = ["足球", "", "股票".repeat(40).leak(), "龘科技ab[MASK]"];
        let together = tag(&tagger, &texts);
        for (text, expected) in texts.iter().zip(&together) {
            assert_eq!(&tag(&tagger, &[text])[0], expected, "{text}");
        }
        let flags: Vec<bool> = together.iter().map(|tagging| tagging.truncated).collect();
        assert_eq!(flags, [false, false, true, false]);
        assert_eq!(together[3].unknown_tokens, 1);
        assert_eq!(tag(&tagger, &[]), []);
    }

    #[test]
    fn a_literal_mask_in_a_text_is_neither_shifted_nor_a_further_mask() {
        let tagger = tagger();
        let text = tagger.encode("新[MASK]闻[SEP][CLS][PAD]");
        for (pass, input) in tagger.plan().passes().iter().zip(tagger.inputs(&[&text])) {
            let special = test_tokenizer().special();
            let at = |wanted: u32| {
                let ids = input.input_ids.iter().enumerate();
                ids.filter(|(_, id)| **id == i64::from(wanted))
                    .map(|(at, _)| at as i64)
                    .collect::<Vec<_>>()
            };
            assert_eq!(at(special.mask), pass.mask_positions);
            assert_eq!(input.mask_positions, pass.mask_positions);
            assert_eq!(at(special.cls), [0]);
            assert_eq!(at(special.sep), [input.tokens as i64 - 1]);
            assert_eq!(at(special.pad), [0i64; 0]);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_rows_of_one_shape(
            texts in proptest::collection::vec("(\\PC|[\\x00-\\x1f]|\\[MASK\\]|\\[SEP\\]|[一-龥]){0,80}", 1..6)
        ) {
            let tagger = TAGGER.with(Arc::clone);
            let special = tagger.tokenizer.special();
            let encoded: Vec<EncodedText> = texts.iter().map(|text| tagger.encode(text)).collect();
            let encoded: Vec<&EncodedText> = encoded.iter().collect();
            for (pass, input) in tagger.plan().passes().iter().zip(tagger.inputs(&encoded)) {
                let rows = input.input_ids.chunks(input.tokens);
                for (row, real) in rows.zip(input.attention_mask.chunks(input.tokens)) {
                    let real = real.iter().filter(|mask| **mask == 1).count();
                    let at = |wanted: u32| {
                        let ids = (0i64..).zip(row);
                        let found = ids.filter(|(_, id)| **id == i64::from(wanted));
                        found.map(|(at, _)| at).collect::<Vec<_>>()
                    };
                    proptest::prop_assert!(real <= 64);
                    proptest::prop_assert_eq!(at(special.cls), [0]);
                    proptest::prop_assert_eq!(at(special.mask), pass.mask_positions.clone());
                    proptest::prop_assert_eq!(at(special.sep), [real as i64 - 1]);
                    proptest::prop_assert_eq!(at(special.pad).len(), input.tokens - real);
                }
            }
            let taggings = tagger.tag(&mut TwinModel::new(8), &encoded).unwrap();
            proptest::prop_assert_eq!(taggings.len(), texts.len());
            proptest::prop_assert!(taggings.iter().all(Result::is_ok));
        }
    }

    thread_local! {
        static TAGGER: Arc<Tagger> = Arc::new(tagger());
    }

    #[test]
    fn thresholds_decide_the_topic_and_what_is_named_beside_it() {
        let settings = TaggingSettings {
            threshold: Some(0.5),
            topics_threshold: 0.4,
            top_k: 2,
            ..TaggingSettings::default()
        };
        let tagger = tagger_of(&settings).unwrap();
        let taggings = tag(&tagger, &["ab", "体育", "体育科技"]);
        assert_eq!(taggings[0].topic, OTHER);
        assert!(taggings[0].probability < 0.5 && taggings[0].probability > 0.3);
        assert_eq!(taggings[0].topics, []);
        assert_eq!(
            (taggings[1].topic.as_str(), taggings[1].topics.len()),
            ("体育", 1)
        );
        assert_eq!(
            taggings[2].topics.len(),
            2,
            "two topics above the second threshold"
        );
        assert!(
            taggings
                .iter()
                .flat_map(|tagging| &tagging.topics)
                .all(|topic| topic.label != OTHER)
        );
    }

    #[test]
    fn calibration_subtracts_the_score_of_the_empty_document() {
        let settings = TaggingSettings {
            calibration: Some(true),
            // Only the second prompt's rows hold neither 新 nor 闻.
            prompt: 1,
            ..TaggingSettings::default()
        };
        let mut tagger = tagger_of(&settings).unwrap();
        let text = tagger.encode("体育");
        let too_early = tagger.tag(&mut TwinModel::new(8), &[&text]);
        assert!(matches!(too_early, Err(TaggerError::NotCalibrated)));
        tagger.calibrate(&mut TwinModel::new(8)).unwrap();
        let empty = &tag(&tagger, &[""])[0];
        for topic in &empty.topics {
            assert!(
                (topic.probability - 1.0 / 3.0).abs() < 1e-6,
                "nothing is known of nothing"
            );
        }
        assert_eq!(tag(&tagger, &["体育"])[0].topic, "体育");
    }

    /// Gives NaN for the rows that it is told.
    struct Poisoned {
        twin: TwinModel,
        row: usize,
        embedding: bool,
    }

    impl Model for Poisoned {
        fn hidden_size(&self) -> usize {
            self.twin.hidden_size()
        }

        fn run(&mut self, input: &PassInput) -> Result<PassOutput, ModelError> {
            let mut output = self.twin.run(input)?;
            if self.embedding {
                output.sentence_embedding[self.row * 8] = f32::INFINITY;
            } else {
                let width = input.masks * input.label_token_ids.len();
                output.label_log_probs[self.row * width] = f32::NAN;
            }
            Ok(output)
        }
    }

    #[test]
    fn a_row_without_numbers_leaves_the_others_sound() {
        let tagger = tagger();
        let texts = ["体育", "财经", "科技"].map(|text| tagger.encode(text));
        for embedding in [false, true] {
            let mut model = Poisoned {
                twin: TwinModel::new(8),
                row: 1,
                embedding,
            };
            let taggings = tagger.tag(&mut model, &texts.each_ref()).unwrap();
            assert!(taggings[0].is_ok() && taggings[2].is_ok());
            assert_eq!(taggings[1], Err(NotFinite));
        }
        let wrong_width = tagger.tag(&mut TwinModel::new(9), &[&texts[0]]);
        assert!(matches!(
            wrong_width,
            Err(TaggerError::Shape {
                found: 9,
                wanted: 8,
                ..
            })
        ));
    }

    #[test]
    fn fingerprints_follow_what_they_stand_for() {
        let of = |settings: TaggingSettings| tagger_of(&settings).unwrap().fingerprints().clone();
        let plain = of(TaggingSettings::default());
        assert_eq!(plain.embedding.len(), FINGERPRINT_DIGITS);
        let top_k = TaggingSettings {
            top_k: 1,
            ..TaggingSettings::default()
        };
        assert_eq!(of(top_k), plain, "how much is told changes no meaning");
        let calibrated = of(TaggingSettings {
            calibration: Some(true),
            ..TaggingSettings::default()
        });
        assert_eq!(calibrated.embedding, plain.embedding);
        assert_ne!(calibrated.labelling, plain.labelling);
        let prompted = of(TaggingSettings {
            prompt: 1,
            ..TaggingSettings::default()
        });
        assert_ne!(prompted.embedding, plain.embedding);
        assert_ne!(prompted.labelling, plain.labelling);
        assert_ne!(digest(["ab", "c"]), digest(["a", "bc"]));
    }

    #[test]
    fn a_whitening_is_applied_to_the_embeddings_that_it_was_fitted_on() {
        let plain = tagger();
        let mut fit = WhiteningFit::new(8).unwrap();
        for tagging in tag(
            &plain,
            &["体育", "足球", "股票", "新闻科技", "ab", "2018", "c体"],
        ) {
            fit.add(&tagging.embedding).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.bin");
        let whitening = fit.finish(0.1, &plain.fingerprints().embedding).unwrap();
        whitening.save(&path).unwrap();
        let settings = TaggingSettings {
            whitening: path.display().to_string(),
            ..TaggingSettings::default()
        };
        let whitened = tagger_of(&settings).unwrap();
        assert_ne!(whitened.fingerprints(), plain.fingerprints());
        let mut expected = tag(&plain, &["体育"]).remove(0).embedding;
        whitening.apply(&mut expected);
        assert_eq!(tag(&whitened, &["体育"])[0].embedding, expected);
        let embedded = whitened
            .embed(&mut TwinModel::new(8), &[&whitened.encode("体育")])
            .unwrap();
        assert_eq!(
            embedded,
            [Ok(expected)],
            "a query is embedded as a document is"
        );

        let other = tagger_of(&TaggingSettings {
            prompt: 1,
            ..settings
        });
        let message = other.unwrap_err().to_string();
        assert!(message.contains("whiten fit"), "{message}");
    }

    #[test]
    fn more_tokens_than_the_model_takes_are_refused() {
        let settings = TaggingSettings {
            max_tokens: 65,
            ..TaggingSettings::default()
        };
        assert!(matches!(
            tagger_of(&settings),
            Err(TaggerError::TooManyTokens { .. })
        ));
        let settings = TaggingSettings {
            max_tokens: 32,
            ..TaggingSettings::default()
        };
        let tagger = tagger_of(&settings).unwrap();
        let long = tagger.encode(&"体".repeat(100));
        assert_eq!(tagger.row_tokens(&long), 32);
    }
}
