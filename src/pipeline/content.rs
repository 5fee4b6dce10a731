//! What is written and how much memory it takes once it is built: a record's attributes stay the text that they
//! are until then. Knows no store.

use jiff::Timestamp;

use super::Context;
use super::ledger::Ticket;
use crate::decode::Decoded;
use crate::document::{DocumentId, Version};
use crate::source::SourceRecord;
use crate::store::point::{TaggedDocument, build_point, build_whole_point};
use crate::store::{PointWrite, StoreError};

/// Bytes that a value of the attributes takes in a point that is built, beside its text: measured with names of a
/// few characters, of which the engine or the client's request make another copy.
const BUILT_VALUE_BYTES: usize = 320;

/// Bytes from which on points are built on a thread of their own.
const LARGE_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of the points that are built for one batch at most; a larger one is built alone.
const BATCH_BUILT_BYTES: usize = 16 * 1024 * 1024;

/// What is to be written and the record it came from, which is kept for the dead-letter topic until then.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) ticket: Ticket,
    pub(super) record: SourceRecord,
    pub(super) content: Content,
}

impl Write {
    /// The point, made for each try: the store takes it for good, and to make it costs no more than to copy
    /// it.
    ///
    /// # Errors
    /// [`StoreError::Unstorable`] where the record no longer says what it said when it was decoded: never.
    pub(super) fn point(&self, context: &Context) -> Result<PointWrite, StoreError> {
        let provenance = &context.provenance;
        match &self.content {
            Content::Tagged(tagged, tagged_at) if tagged.document.left_in_record > 0 => {
                match context.decoder.decode_whole(&self.record) {
                    Ok(Decoded::Document(whole)) => Ok(PointWrite::Upsert(build_whole_point(
                        whole, tagged, provenance, *tagged_at,
                    ))),
                    Ok(Decoded::Tombstone(_)) => Err(StoreError::Unstorable(
                        "the record has lost its value".to_owned(),
                    )),
                    Err(error) => Err(StoreError::Unstorable(error.to_string())),
                }
            }
            Content::Tagged(tagged, tagged_at) => Ok(PointWrite::Upsert(build_point(
                tagged, provenance, *tagged_at,
            ))),
            Content::Tombstone {
                id,
                version,
                deleted_at,
            } => Ok(PointWrite::Tombstone {
                id: id.clone(),
                version: version.clone(),
                deleted_at: *deleted_at,
            }),
        }
    }

    /// Bytes that the point takes, roughly.
    pub(super) fn built_bytes(&self) -> usize {
        let values = match &self.content {
            Content::Tagged(tagged, _) => tagged.document.left_in_record,
            Content::Tombstone { .. } => 0,
        };
        self.record.size_bytes() + values.saturating_mul(BUILT_VALUE_BYTES)
    }
}

/// What a write puts into the store.
#[derive(Debug)]
pub(super) enum Content {
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
    pub(super) fn is_document(&self) -> bool {
        matches!(self, Self::Tagged(..))
    }

    pub(super) fn id(&self) -> &DocumentId {
        match self {
            Self::Tagged(tagged, _) => &tagged.document.id,
            Self::Tombstone { id, .. } => id,
        }
    }
}

/// The points of a batch that takes so many bytes.
///
/// # Errors
/// As [`Write::point`].
pub(super) fn points(
    context: &Context,
    batch: &[Write],
    bytes: usize,
) -> Result<Vec<PointWrite>, StoreError> {
    let build = || batch.iter().map(|write| write.point(context)).collect();
    if bytes <= LARGE_BATCH_BYTES {
        return build();
    }
    // The allocator keeps what a thread has used for the next thread that starts after its end: built here by
    // whichever thread runs this task, each of them would keep that much.
    std::thread::scope(|scope| {
        let built = scope.spawn(build).join();
        built.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// How many of the pending writes make the next batch: as many as may be built at once, and one at least.
pub(super) fn points_at_once(pending: &[Write], most: usize) -> usize {
    let mut bytes = 0_usize;
    let fitting = pending.iter().take(most).take_while(|write| {
        bytes = bytes.saturating_add(write.built_bytes());
        bytes <= BATCH_BUILT_BYTES
    });
    fitting.count().max(1).min(pending.len())
}
