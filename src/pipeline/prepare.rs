//! Decoding and tokenising on threads of their own: records in, documents ready for the model,
//! tombstones and refusals out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::mpsc;

use super::context::{Context, PipelineError, spawn};
use super::dead_letters::{Refusal, Refused};
use super::in_flight::InFlight;
use super::infer::batches::Arrival;
use super::infer::ready::{Ready, ReadyDocument, to_write};
use super::intake::Admitted;
use super::ledger::Ticket;
use super::write::content::{Content, Write};
use crate::decode::{Decoded, compose_text};
use crate::document::{Document, LatestTime, TopicPartition, Version};
use crate::source::{Source, SourceRecord};
use crate::telemetry::Stage;

/// Where prepared records go.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) documents: Sender<Arrival<Ready>>,
    pub(super) writes: mpsc::UnboundedSender<Vec<Write>>,
    pub(super) refusals: mpsc::Sender<Refused>,
}

/// Partitions whose orders a thread remembers at most; a job may read any number of files.
const REMEMBERED_ORDERS: usize = 4096;

/// The orders of partitions, each asked for once: the digest behind it costs more than the rest of a
/// version.
#[derive(Debug, Default)]
struct Orders {
    last: Option<(TopicPartition, i64)>,
    known: HashMap<TopicPartition, i64>,
}

impl Orders {
    fn of(&mut self, source: &dyn Source, partition: &TopicPartition) -> i64 {
        if let Some((last, order)) = &self.last
            && last == partition
        {
            return *order;
        }
        let order = match self.known.get(partition) {
            Some(order) => *order,
            None => {
                let order = source.version_order(partition);
                if self.known.len() >= REMEMBERED_ORDERS {
                    self.known.clear();
                }
                self.known.insert(partition.clone(), order);
                order
            }
        };
        self.last = Some((partition.clone(), order));
        order
    }
}

/// Prepares chunks until the intake ends or a stage behind has gone.
pub(super) fn run_prepare(context: &Context, records: &Receiver<Admitted>, out: &Prepared) {
    let mut orders = Orders::default();
    for admitted in records {
        let decoded = decode(context, &mut orders, admitted, out);
        let Some((documents, tombstones)) = decoded else {
            return;
        };
        let started = Instant::now();
        let ready: Vec<Ready> = documents
            .into_iter()
            .map(|decoded| tokenise(context, decoded))
            .collect();
        context.metrics.stage(Stage::Tokenise, started.elapsed());
        let (ready, repeated) = split_repeated(context, ready);
        let mut writes = tombstones;
        writes.extend(repeated);
        if !writes.is_empty() && out.writes.send(writes).is_err() {
            return;
        }
        if !ready.is_empty() && out.documents.send(Arrival::now(ready)).is_err() {
            return;
        }
    }
}

/// Documents whose text came before go straight to the writer. That lets one overtake an older version
/// of itself which still waits for the model: the store then refuses the older one, as it always does.
fn split_repeated(context: &Context, ready: Vec<Ready>) -> (Vec<Ready>, Vec<Write>) {
    let now = jiff::Timestamp::now();
    let mut fresh = Vec::with_capacity(ready.len());
    let mut repeated = Vec::new();
    for ready in ready {
        match context.repeats.find(&ready.body.encoded) {
            Some(answer) => {
                let encoded = &ready.body.encoded;
                let (truncated, unknown) = (encoded.truncated, encoded.unknown_tokens);
                context.counters.truncated.add(usize::from(truncated));
                context.counters.unknown_tokens.add(unknown);
                context.metrics.texts(u64::from(truncated), unknown as u64);
                repeated.push(to_write(ready, answer, now));
            }
            None => fresh.push(ready),
        }
    }
    if !repeated.is_empty() {
        context.counters.tagged.add(repeated.len());
        context.counters.repeated.add(repeated.len());
        context.metrics.cache_hits(repeated.len() as u64);
    }
    (fresh, repeated)
}

/// A document with its age.
type Decoding = InFlight<(Document, Version)>;

/// Splits a chunk into documents, deletions and refusals; `None` when nobody takes the refusals.
fn decode(
    context: &Context,
    orders: &mut Orders,
    admitted: Admitted,
    out: &Prepared,
) -> Option<(Vec<Decoding>, Vec<Write>)> {
    let started = Instant::now();
    let mut documents = Vec::with_capacity(admitted.records.len());
    let mut tombstones = Vec::new();
    let latest = LatestTime::after(jiff::Timestamp::now(), context.future_tolerance);
    for record in admitted.records {
        let ticket = Ticket::of(&record, admitted.at);
        // A replayed record is as old as it was where it first stood; what is committed is its own
        // position.
        let origin = record.origin();
        let version = Version {
            order: orders.of(&*context.source, &origin.position.partition),
            timestamp_ms: age(context, &record, origin.timestamp_ms, latest),
            position: origin.position,
        };
        let decoded = context.decoder.decode(&record);
        let record = InFlight {
            ticket,
            record,
            body: (),
        };
        match decoded {
            Ok(Decoded::Document(document)) => {
                documents.push(record.map(|()| (document, version)));
            }
            Ok(Decoded::Tombstone(id)) => tombstones.push(record.map(|()| Content::Tombstone {
                id,
                version,
                deleted_at: jiff::Timestamp::now(),
            })),
            Err(error) => {
                let refusal = Refusal {
                    stage: "decode",
                    class: error.class(),
                    message: error.to_string(),
                };
                out.refusals.blocking_send(record.map(|()| refusal)).ok()?;
            }
        }
    }
    context.metrics.stage(Stage::Decode, started.elapsed());
    Some((documents, tombstones))
}

/// A record's time as its version has it: 0 where there is none, or one that cannot be true.
fn age(
    context: &Context,
    record: &SourceRecord,
    timestamp_ms: Option<i64>,
    latest: LatestTime,
) -> i64 {
    match timestamp_ms {
        None => 0,
        Some(timestamp_ms) if latest.forbids(timestamp_ms) => {
            context.counters.future_times.add(1);
            context.metrics.future_times(1);
            let records = context.counters.future_times.get();
            context.future_times.log(record, records);
            0
        }
        Some(timestamp_ms) => timestamp_ms,
    }
}

fn tokenise(context: &Context, decoded: Decoding) -> Ready {
    decoded.map(|(mut document, version)| {
        let text = compose_text(&document, &context.text);
        if document.left_in_record > 0 {
            // The point is built from the record, and so are these: one copy is enough till then.
            (document.title, document.text) = (String::new(), String::new());
        }
        let mut encoded = context.tagger.encode(&text.text);
        encoded.truncated |= text.cut;
        let tokens = context.tagger.row_tokens(&encoded);
        ReadyDocument {
            document,
            version,
            encoded,
            at: Instant::now(),
            tokens,
        }
    })
}

/// Starts `threads` preparing threads over one queue.
pub(super) fn spawn_prepare(
    context: &Arc<Context>,
    threads: usize,
    records: &Receiver<Admitted>,
    out: &Prepared,
) -> Result<Vec<std::thread::JoinHandle<()>>, PipelineError> {
    (0..threads)
        .map(|index| {
            let (records, out) = (records.clone(), out.clone());
            spawn(context, format!("prepare-{index}"), move |context| {
                run_prepare(context, &records, &out);
            })
        })
        .collect()
}
