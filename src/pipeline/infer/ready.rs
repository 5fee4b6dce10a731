//! A document that is ready for the model, and the write that becomes of it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use crate::batch::BatchItem;
use crate::document::{Document, Version};
use crate::pipeline::in_flight::InFlight;
use crate::pipeline::write::content::{Content, Write};
use crate::score::Tagging;
use crate::store::point::{Answer, TaggedDocument};
use crate::tokenize::EncodedText;

/// A document on its way to the model.
pub(in crate::pipeline) type Ready = InFlight<ReadyDocument>;

/// See [`Ready`].
#[derive(Debug)]
pub(in crate::pipeline) struct ReadyDocument {
    pub(in crate::pipeline) document: Document,
    pub(in crate::pipeline) version: Version,
    pub(in crate::pipeline) encoded: EncodedText,
    /// When it was ready for a batch.
    pub(in crate::pipeline) at: Instant,
    /// Tokens of its row in a batch.
    pub(in crate::pipeline) tokens: usize,
}

impl BatchItem for Ready {
    fn tokens(&self) -> usize {
        self.body.tokens
    }

    fn key_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.body.document.id.hash(&mut hasher);
        hasher.finish()
    }
}

/// What a point needs of a tagging.
pub(crate) fn answer_of(tagging: Tagging) -> Answer {
    let topics = tagging.topics.into_iter();
    Answer {
        topic: tagging.topic,
        probability: tagging.probability,
        topics: topics
            .map(|score| (score.label, score.probability))
            .collect(),
        embedding: tagging.embedding,
    }
}

/// The write of a document and what the model said of its text at `now`.
pub(in crate::pipeline) fn to_write(ready: Ready, answer: Arc<Answer>, now: Timestamp) -> Write {
    ready.map(|ready| {
        let tagged = TaggedDocument {
            document: ready.document,
            version: ready.version,
            answer,
            truncated: ready.encoded.truncated,
        };
        Content::Tagged(Box::new(tagged), now)
    })
}
