//! The worker against the reference: what transformers and PyTorch say of fixed documents with
//! small random models (`tests/goldens/README.md`), through the real ONNX Runtime session.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tcbert_worker::model::{Bundle, Model, ModelSettings, OnnxModel, PassOutput};
use tcbert_worker::score::{ModelIdentity, Tagger, TaggingSettings};
use tcbert_worker::taxonomy::Taxonomy;
use tcbert_worker::tokenize::{EncodedText, PromptTokenizer};

#[derive(Deserialize)]
struct Expected {
    bundle: String,
    tolerance: f32,
    taxonomies: HashMap<String, ExpectedTaxonomy>,
    documents: Vec<Document>,
}

#[derive(Deserialize)]
struct ExpectedTaxonomy {
    file: String,
    labels: Vec<String>,
    prior: Option<Vec<f32>>,
}

#[derive(Deserialize)]
struct Document {
    id: String,
    text: String,
    answers: HashMap<String, Answer>,
}

#[derive(Deserialize)]
struct Answer {
    truncated: bool,
    passes: Vec<ExpectedPass>,
    scores: Vec<f32>,
    probabilities: Vec<f32>,
    ranking: Vec<String>,
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct ExpectedPass {
    masks: usize,
    input_ids: Vec<i64>,
    mask_positions: Vec<i64>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// One taxonomy on one model.
struct Golden {
    name: String,
    tagger: Tagger,
    expected: Expected,
}

impl Golden {
    fn answers(&self) -> impl Iterator<Item = (&Document, &Answer)> {
        let documents = self.expected.documents.iter();
        documents.map(|document| (document, &document.answers[&self.name]))
    }

    #[track_caller]
    fn close(&self, what: &str, found: &[f32], wanted: &[f32]) {
        assert_eq!(found.len(), wanted.len(), "{what}");
        for (found, wanted) in found.iter().zip(wanted) {
            let off = (found - wanted).abs();
            assert!(
                off <= self.expected.tolerance,
                "{what}: {found} where {wanted} was due"
            );
        }
    }

    /// Ids and masks of every pass, with each document in a batch of its own.
    fn check_inputs(&self) {
        for (document, answer) in self.answers() {
            let text = self.tagger.encode(&document.text);
            assert_eq!(text.truncated, answer.truncated, "{}", document.id);
            let inputs = self.tagger.inputs(&[&text]);
            assert_eq!(inputs.len(), answer.passes.len(), "{}", document.id);
            for (input, pass) in inputs.iter().zip(&answer.passes) {
                let what = format!("{} {} masks {}", self.name, document.id, pass.masks);
                assert_eq!(input.masks, pass.masks, "{what}");
                assert_eq!(input.input_ids, pass.input_ids, "{what}");
                assert_eq!(input.mask_positions, pass.mask_positions, "{what}");
                assert!(input.attention_mask.iter().all(|real| *real == 1), "{what}");
            }
        }
    }

    /// Scores, probabilities, order and embeddings, with documents in batches of `rows`.
    fn check_answers(&self, model: &mut dyn Model, rows: usize) {
        let answers: Vec<(&Document, &Answer)> = self.answers().collect();
        for batch in answers.chunks(rows) {
            let texts = batch
                .iter()
                .map(|(document, _)| self.tagger.encode(&document.text));
            let texts: Vec<EncodedText> = texts.collect();
            let texts: Vec<&EncodedText> = texts.iter().collect();
            let inputs = self.tagger.inputs(&texts);
            let outputs = inputs.iter().map(|input| model.run(input).unwrap());
            let outputs: Vec<PassOutput> = outputs.collect();
            let scores = self.tagger.label_scores(texts.len(), &outputs).unwrap();
            let taggings = self.tagger.score(&texts, &outputs).unwrap();
            let labels = self.expected.taxonomies[&self.name].labels.len();
            let scores = scores.chunks(labels);
            for (((document, answer), tagging), scores) in batch.iter().zip(taggings).zip(scores) {
                let tagging = tagging.unwrap();
                let what = format!("{} {} in batches of {rows}", self.name, document.id);
                self.close(&what, scores, &answer.scores);
                self.close(&what, &tagging.embedding, &answer.embedding);
                assert_eq!(tagging.truncated, answer.truncated, "{what}");
                let labels = &self.expected.taxonomies[&self.name].labels;
                let probability = |label: &String| {
                    let topic = tagging.topics.iter().find(|topic| topic.label == *label);
                    topic
                        .unwrap_or_else(|| panic!("{what}: no {label}"))
                        .probability
                };
                let probabilities: Vec<f32> = labels.iter().map(probability).collect();
                self.close(&what, &probabilities, &answer.probabilities);
                // Labels closer than the tolerance may change places.
                let first = probability(&answer.ranking[0]);
                let second = probability(&answer.ranking[1]);
                if first - second > 2.0 * self.expected.tolerance {
                    assert_eq!(tagging.topic, answer.ranking[0], "{what}");
                    assert_eq!(tagging.topics[0].label, answer.ranking[0], "{what}");
                }
            }
        }
    }
}

fn load_model(bundle: &Bundle) -> OnnxModel {
    let settings = ModelSettings {
        sessions: 1,
        threads: 1,
        ..ModelSettings::default()
    };
    OnnxModel::load_all(bundle, &settings).unwrap().remove(0)
}

#[track_caller]
fn check(expected: &str) {
    let read = || -> Expected {
        let text = fs::read_to_string(folder().join(expected)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let bundle = Bundle::open(&folder().join(read().bundle)).unwrap();
    let mut model = load_model(&bundle);
    let tokenizer = Arc::new(PromptTokenizer::from_file(&bundle.tokenizer_path()).unwrap());
    let identity = ModelIdentity {
        fingerprint: bundle.fingerprint().to_owned(),
        max_tokens: bundle.manifest().max_tokens,
        hidden_size: bundle.manifest().hidden_size,
    };
    let settings = TaggingSettings {
        top_k: 0,
        ..TaggingSettings::default()
    };
    let names: Vec<String> = read().taxonomies.into_keys().collect();
    assert!(names.len() >= 4 && read().documents.len() >= 30);
    for name in names {
        let expected = read();
        let taxonomy = &expected.taxonomies[&name];
        let loaded = Taxonomy::from_file(&folder().join(&taxonomy.file)).unwrap();
        let labels: Vec<&String> = loaded.labels.iter().map(|label| &label.name).collect();
        assert_eq!(labels, taxonomy.labels.iter().collect::<Vec<_>>());
        assert_eq!(loaded.calibration, taxonomy.prior.is_some());
        let mut tagger =
            Tagger::with_taxonomy(loaded, &settings, Arc::clone(&tokenizer), &identity).unwrap();
        tagger.calibrate(&mut model).unwrap();
        let golden = Golden {
            name,
            tagger,
            expected,
        };
        golden.check_inputs();
        for rows in [1, 7, golden.expected.documents.len()] {
            golden.check_answers(&mut model, rows);
        }
    }
}

#[test]
fn a_bert_agrees_with_the_reference_batched_and_single() {
    check("expected.json");
}

#[test]
fn a_megatron_bert_agrees_with_the_reference_batched_and_single() {
    check("expected-megatron.json");
}
