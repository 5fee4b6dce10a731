//! The scoring stage: what the model gives becomes topics and an embedding.
//! Knows taxonomies, token ids and passes; must not know records, stores or which runtime runs
//! the model.
//!
//! `verbalizer.rs` plans the passes, `label.rs` turns log-probabilities into topics, `pool.rs` and
//! `whiten.rs` finish the embedding, `fingerprint.rs` says what both depend on, `tagger.rs` composes
//! them, `settings.rs` holds the section `tagging`.

mod fingerprint;
mod label;
mod pool;
mod settings;
mod tagger;
mod verbalizer;
mod whiten;

use serde::Serialize;

pub use fingerprint::{Fingerprints, ModelIdentity};
pub use pool::normalise;
pub use settings::TaggingSettings;
pub use tagger::{Tagger, TaggerError};
pub use verbalizer::{
    Collision, EMBEDDING_MASKS, MAX_WORD_TOKENS, MIN_TEXT_TOKENS, Pass, PassWord, PlanError,
    PlanReport, UnknownWord, VerbalizerPlan,
};
pub use whiten::{MAX_DIMENSIONS, Whitening, WhiteningError, WhiteningFit};

/// A label and how probable it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopicScore {
    /// The label's name.
    pub label: String,
    /// From 0 to 1; those of all labels sum to 1.
    pub probability: f32,
}

/// What a text is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Tagging {
    /// The best label's name, or `other` where it is less probable than the threshold.
    pub topic: String,
    /// The best label's probability, even where the topic is `other`.
    pub probability: f32,
    /// The best labels, best first; never `other`.
    pub topics: Vec<TopicScore>,
    /// Of length one, or all zeros.
    pub embedding: Vec<f32>,
    /// Whether the text was longer than the row that the embedding comes from.
    pub truncated: bool,
    /// Tokens of the text that the vocabulary does not know.
    pub unknown_tokens: usize,
}

/// The model gave a value that is no number for this text; the others of its batch are sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model gave a value that is not a number for this text")]
pub struct NotFinite;
