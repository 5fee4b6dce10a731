//! What is written and how much memory it takes once it is built: a record's attributes stay the text that they
//! are until then. Knows no store.

use jiff::Timestamp;

use crate::document::{DocumentId, Version};
use crate::pipeline::in_flight::InFlight;
use crate::store::point::TaggedDocument;

/// Bytes that a value of the attributes takes in a point that is built, beside its text: measured with names of a
/// few characters, of which the engine or the client's request make another copy.
const BUILT_VALUE_BYTES: usize = 320;

/// Bytes of the points that are built for one batch at most; a larger one is built alone.
const BATCH_BUILT_BYTES: usize = 16 * 1024 * 1024;

/// What is to be written, with the record it came from.
pub(in crate::pipeline) type Write = InFlight<Content>;

impl InFlight<Content> {
    /// Bytes that the point takes, roughly.
    pub(in crate::pipeline) fn built_bytes(&self) -> usize {
        let values = match &self.body {
            Content::Tagged(tagged, _) => tagged.document.left_in_record,
            Content::Tombstone { .. } => 0,
        };
        self.record.size_bytes() + values.saturating_mul(BUILT_VALUE_BYTES)
    }
}

/// What a write puts into the store.
#[derive(Debug)]
pub(in crate::pipeline) enum Content {
    /// A document and what the model said of it, at that time.
    Tagged(Box<TaggedDocument>, Timestamp),
    /// The marker of a deleted one.
    Tombstone {
        id: DocumentId,
        version: Version,
        deleted_at: Timestamp,
    },
}

impl Content {
    /// Whether this writes a document rather than the marker of a deleted one.
    pub(in crate::pipeline) fn is_document(&self) -> bool {
        matches!(self, Self::Tagged(..))
    }

    pub(in crate::pipeline) fn id(&self) -> &DocumentId {
        match self {
            Self::Tagged(tagged, _) => &tagged.document.id,
            Self::Tombstone { id, .. } => id,
        }
    }
}

/// How many of the pending writes make the next batch: as many as may be built at once, and one at least.
pub(in crate::pipeline) fn points_at_once(pending: &[Write], most: usize) -> usize {
    let mut bytes = 0_usize;
    let fitting = pending.iter().take(most).take_while(|write| {
        bytes = bytes.saturating_add(write.built_bytes());
        bytes <= BATCH_BUILT_BYTES
    });
    fitting.count().max(1).min(pending.len())
}
