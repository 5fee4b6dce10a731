//! Decoding and tokenising on threads of their own: records in, documents ready for the model,
//! tombstones and refusals out.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::mpsc;

use super::dead_letters::Refusal;
use super::ledger::Ticket;
use super::write::Write;
use super::{Context, PipelineError, Refused, spawn};
use crate::decode::{Decoded, compose_text};
use crate::document::{Document, Version};
use crate::source::SourceRecord;
use crate::store::PointWrite;
use crate::tokenize::EncodedText;

/// A document on its way to the model, with the record it came from.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) ticket: Ticket,
    pub(super) record: SourceRecord,
    pub(super) document: Document,
    pub(super) version: Version,
    pub(super) encoded: EncodedText,
}

/// Where prepared records go.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) documents: Sender<Vec<Ready>>,
    pub(super) writes: mpsc::Sender<Vec<Write>>,
    pub(super) refusals: mpsc::Sender<Refused>,
}

/// Prepares chunks until the intake ends; false in the middle when a stage behind has gone.
pub(super) fn run_prepare(context: &Context, records: &Receiver<Vec<SourceRecord>>, out: &Prepared) {
    for chunk in records {
        let started = std::time::Instant::now();
        let count = chunk.len();
        let mut documents = Vec::with_capacity(count);
        let mut tombstones = Vec::new();
        for record in chunk {
            let ticket = Ticket::of(&record);
            let version = Version {
                position: record.position.clone(),
                timestamp_ms: record.timestamp_ms.unwrap_or(0),
            };
            match context.decoder.decode(&record) {
                Ok(Decoded::Document(document)) => {
                    let text = compose_text(&document, context.decoder.text_settings());
                    let mut encoded = context.tagger.encode(&text.text);
                    encoded.truncated |= text.cut;
                    documents.push(Ready { ticket, record, document, version, encoded });
                }
                Ok(Decoded::Tombstone(id)) => tombstones.push(Write {
                    ticket,
                    record,
                    point: PointWrite::Tombstone { id, version },
                }),
                Err(error) => {
                    let refusal = Refusal { stage: "decode", class: error.class(), message: error.to_string() };
                    if out.refusals.blocking_send(Refused { ticket, record, refusal }).is_err() {
                        return;
                    }
                }
            }
        }
        context.telemetry.prepared(count, started.elapsed());
        if !tombstones.is_empty() && out.writes.blocking_send(tombstones).is_err() {
            return;
        }
        if !documents.is_empty() && out.documents.send(documents).is_err() {
            return;
        }
    }
}

/// Starts `threads` preparing threads over one queue.
pub(super) fn spawn_prepare(
    context: &Arc<Context>,
    threads: usize,
    records: &Receiver<Vec<SourceRecord>>,
    out: &Prepared,
) -> Result<Vec<std::thread::JoinHandle<()>>, PipelineError> {
    (0..threads)
        .map(|index| {
            let (records, out) = (records.clone(), out.clone());
            spawn(context, format!("prepare-{index}"), move |context| run_prepare(context, &records, &out))
        })
        .collect()
}
