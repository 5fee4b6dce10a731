//! What vectors and topics depend on, as digests: a change of any of it must not go unseen. Pure.

use super::whiten::Whitening;
use crate::digest;
use crate::taxonomy::Taxonomy;

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

impl Fingerprints {
    /// Those of embeddings that are `plain` before they are whitened, and of the taxonomy's labels.
    pub(super) fn new(plain: String, whitening: Option<&Whitening>, taxonomy: &Taxonomy) -> Self {
        let embedding = match whitening {
            Some(whitening) => digest::of_parts(
                ["whitened", &plain, whitening.fingerprint()],
                FINGERPRINT_DIGITS,
            ),
            None => plain,
        };
        let labelling = labelling_fingerprint(taxonomy, &embedding);
        Self {
            embedding,
            labelling,
        }
    }
}

/// The fingerprint of embeddings before they are whitened.
pub(super) fn of_embedding(model: &ModelIdentity, tokenizer: &str, prompt: &str) -> String {
    let parts = ["embedding", &model.fingerprint, tokenizer, prompt];
    digest::of_parts(parts, FINGERPRINT_DIGITS)
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
    digest::of_parts(parts, FINGERPRINT_DIGITS)
}
