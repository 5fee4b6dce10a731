//! Builds points for each try of a write: the store takes them for good, and to build one costs no more than to
//! copy it.

use super::content::{Content, Write};
use crate::decode::Decoded;
use crate::pipeline::context::Context;
use crate::store::point::{build_point, build_whole_point};
use crate::store::{PointWrite, StoreError};

/// Bytes from which on points are built on a thread of their own.
const LARGE_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// The points of a batch that takes so many bytes.
///
/// # Errors
/// [`StoreError::Unstorable`] where a record no longer says what it said when it was decoded: never.
pub(super) fn points(
    context: &Context,
    batch: &[Write],
    bytes: usize,
) -> Result<Vec<PointWrite>, StoreError> {
    let build = || batch.iter().map(|write| point(context, write)).collect();
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

fn point(context: &Context, write: &Write) -> Result<PointWrite, StoreError> {
    let provenance = &context.provenance;
    match &write.body {
        Content::Tagged(tagged, tagged_at) if tagged.document.left_in_record > 0 => {
            match context.decoder.decode_whole(&write.record) {
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
