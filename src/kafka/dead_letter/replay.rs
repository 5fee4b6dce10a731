//! Sends the records of dead letters back to where they stood, marked with where that was, so that a
//! replay is as harmless as a redelivery. What is in the dead-letter topic may be anybody's: it
//! decides neither which topics are written to nor which files are read.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use crate::document::RecordPosition;
use crate::kafka::client::{self, Faults};
use crate::kafka::dead_letter::check::is_compacted;
use crate::kafka::dead_letter::reader::{DeadLetterFilter, visit_dead_letters};
use crate::kafka::dead_letter::settings::DeadLetterSettings;
use crate::kafka::dead_letter::spool::Spool;
use crate::kafka::dead_letter::wire::{Rest, StoredDeadLetter};
use crate::kafka::producer::{client_headers, send_before};
use crate::kafka::settings::KafkaSettings;
use crate::source::{Header, ReplayOrigin, SourceError};

/// Records sent at once, and about how many bytes.
const CHUNK_RECORDS: usize = 200;
const CHUNK_BYTES: usize = 16 * 1024 * 1024;
/// How long the producer is given to hand its events over.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// Longest wait for the records of a chunk; the client gives each up before that.
const DELIVER_WITHIN: Duration = Duration::from_secs(90);

/// What the user may override for the producer.
const REPLAY_DEFAULTS: &[(&str, &str)] = &[
    ("acks", "all"),
    ("message.timeout.ms", "60000"),
    // The broker's bound decides, not the client's, and a record that came compressed fits again.
    ("message.max.bytes", "1000000000"),
    ("compression.type", "zstd"),
];

/// How records are sent back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Send nothing.
    pub dry_run: bool,
    /// Send into compacted topics as well, where a replayed record takes the place of newer ones.
    pub into_compacted: bool,
}

/// What a replay did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Dead letters that the filter wanted.
    pub wanted: u64,
    /// Records sent; none in a dry run.
    pub sent: u64,
    /// Dead letters whose record was not sent, each with a reason.
    pub left: u64,
}

/// Sends records to the topic and partition they came from, with their own key, value, headers and
/// timestamp and a header that says where they first stood; what was cut comes whole out of the
/// spool. Only topics of `kafka.topic` are written to, or the one that the filter names. The dead
/// letters stay where they are. A compacted topic is left alone unless told otherwise: the replayed record
/// would be the last one of its key, and compaction would drop what is newer, deletions as well.
///
/// `say` hears of every dead letter, without its value, and why its record was not sent.
///
/// # Errors
/// When the broker does not answer.
pub fn replay_dead_letters(
    kafka: &KafkaSettings,
    settings: &DeadLetterSettings,
    filter: &DeadLetterFilter,
    options: ReplayOptions,
    say: impl FnMut(&StoredDeadLetter, Result<(), String>),
) -> Result<ReplayReport, SourceError> {
    let mut replay = Replay {
        targets: Targets::ask(kafka, filter, options)?,
        spool: Spool::new(Path::new(&settings.spool_dir), settings.spool_max_bytes),
        dry_run: options.dry_run,
        waiting: Vec::new(),
        waiting_bytes: 0,
        report: ReplayReport::default(),
        say,
    };
    let mut failure = None;
    visit_dead_letters(kafka, filter, |dead_letter| {
        match replay.take(dead_letter) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(()), Err)?;
    replay.send_all()?;
    Ok(replay.report)
}

/// A record on its way back.
struct Returning {
    dead_letter: StoredDeadLetter,
    target: RecordPosition,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<Header>,
    timestamp_ms: Option<i64>,
}

struct Replay<S> {
    targets: Targets,
    spool: Spool,
    dry_run: bool,
    waiting: Vec<Returning>,
    waiting_bytes: usize,
    report: ReplayReport,
    say: S,
}

impl<S: FnMut(&StoredDeadLetter, Result<(), String>)> Replay<S> {
    fn take(&mut self, mut dead_letter: StoredDeadLetter) -> Result<(), SourceError> {
        self.report.wanted += 1;
        match self.original(&mut dead_letter) {
            Err(reason) => self.leave(&dead_letter, reason),
            Ok(_) if self.dry_run => (self.say)(&dead_letter, Ok(())),
            Ok(returning) => {
                self.waiting_bytes += returning.value.as_ref().map_or(0, Vec::len);
                self.waiting.push(returning);
                if self.waiting.len() >= CHUNK_RECORDS || self.waiting_bytes >= CHUNK_BYTES {
                    self.send_all()?;
                }
            }
        }
        Ok(())
    }

    fn leave(&mut self, dead_letter: &StoredDeadLetter, reason: String) {
        self.report.left += 1;
        (self.say)(dead_letter, Err(reason));
    }

    /// The record that a dead letter is about; takes its value.
    fn original(&self, dead_letter: &mut StoredDeadLetter) -> Result<Returning, String> {
        let target = dead_letter
            .origin
            .clone()
            .ok_or("its headers do not say where it came from")?;
        self.targets.allow(&target)?;
        let mut returning = Returning {
            target,
            key: dead_letter.key.clone(),
            value: dead_letter.value.take(),
            headers: dead_letter.headers.clone(),
            timestamp_ms: dead_letter.timestamp_ms,
            dead_letter: dead_letter.clone(),
        };
        if let Some(cut) = &dead_letter.cut {
            let Rest::Spooled(file) = &cut.rest else {
                return Err(format!(
                    "its value of {} bytes was too large to be kept; produce the record again",
                    cut.value_bytes
                ));
            };
            let whole = self.spool.read(file).map_err(|error: io::Error| {
                format!("its value was cut and the spool file {file} cannot be read here: {error}")
            })?;
            if whole.position != returning.target {
                return Err(format!(
                    "the spool file {file} holds another record, {}",
                    whole.position
                ));
            }
            returning.key = whole.key;
            returning.value = whole.value;
            returning.headers = whole.headers;
        }
        // What was rejected may have been a replay itself.
        let target = &returning.target;
        let first = ReplayOrigin::of(&returning.headers, target, returning.timestamp_ms);
        let first = first.unwrap_or_else(|| ReplayOrigin {
            position: target.clone(),
            timestamp_ms: returning.timestamp_ms,
        });
        first.mark(&mut returning.headers);
        Ok(returning)
    }

    fn send_all(&mut self) -> Result<(), SourceError> {
        self.waiting_bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let outcomes = self.targets.send(&waiting)?;
        for (returning, outcome) in waiting.iter().zip(outcomes) {
            match outcome {
                None => {
                    self.report.sent += 1;
                    (self.say)(&returning.dead_letter, Ok(()));
                }
                Some(error) => self.leave(
                    &returning.dead_letter,
                    format!("{} does not take it: {error}", returning.target.partition),
                ),
            }
        }
        Ok(())
    }
}

/// What became of the records of a chunk, by their place in it; the last fault of the client.
#[derive(Debug, Default)]
struct Outcomes {
    failed: Mutex<HashMap<usize, KafkaError>>,
    faults: Faults,
}

impl ClientContext for Outcomes {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client::report(&self.faults, &error, reason);
    }
}

impl ProducerContext for Outcomes {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        if let Err((error, _)) = result {
            self.failed.lock().insert(place, error.clone());
        }
    }
}

/// The partitions that records may be sent back to.
struct Targets {
    producer: BaseProducer<Outcomes>,
    /// Topics that may be written to, with their partitions or why they cannot be.
    partitions: HashMap<String, Result<HashSet<i32>, RDKafkaErrorCode>>,
    /// Topics that are left alone, since they are compacted.
    compacted: HashSet<String>,
}

impl Targets {
    fn ask(
        kafka: &KafkaSettings,
        filter: &DeadLetterFilter,
        options: ReplayOptions,
    ) -> Result<Self, SourceError> {
        let mut config = kafka.client_config(&kafka.properties.connection(), REPLAY_DEFAULTS)?;
        // A topic that is gone is not made again by asking for it.
        config.set("allow.auto.create.topics", "false");
        let producer: BaseProducer<Outcomes> = config
            .create_with_context(Outcomes::default())
            .map_err(|error| client::source_error("the kafka client cannot be set up", &error))?;
        let topics = match &filter.topic {
            Some(topic) => vec![topic.as_str()],
            None => kafka.topics(),
        };
        let mut partitions = HashMap::new();
        let mut compacted = HashSet::new();
        for topic in topics {
            if !options.into_compacted {
                match is_compacted(kafka, topic) {
                    Some(true) => {
                        compacted.insert(topic.to_owned());
                    }
                    Some(false) => {}
                    None => tracing::warn!(
                        topic,
                        "could not check whether the topic is compacted; if it is, a replayed record takes the \
                         place of newer ones of its key"
                    ),
                }
            }
            let metadata = producer
                .client()
                .fetch_metadata(Some(topic), kafka.connect_timeout())
                .map_err(|error| {
                    producer.poll(POLL_WAIT);
                    client::unreachable(&error, &producer.context().faults, kafka)
                })?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            let known = match found.and_then(|found| found.error()) {
                Some(error) => Err(RDKafkaErrorCode::from(error)),
                None => {
                    let numbers = found.map_or(&[][..], |found| found.partitions());
                    Ok(numbers.iter().map(|partition| partition.id()).collect())
                }
            };
            partitions.insert(topic.to_owned(), known);
        }
        Ok(Self {
            producer,
            partitions,
            compacted,
        })
    }

    /// Whether a record may be sent to where it stood.
    fn allow(&self, target: &RecordPosition) -> Result<(), String> {
        let topic = &*target.partition.topic;
        match self.partitions.get(topic) {
            None => Err(format!(
                "it says that it came from {topic}, which is none of kafka.topic; `--topic {topic}` sends it \
                 there"
            )),
            Some(_) if self.compacted.contains(topic) => Err(format!(
                "{topic} is compacted: the replayed record would be the last one of its key, and newer ones would \
                 be dropped from the topic, deletions as well; `--into-compacted` sends it all the same"
            )),
            Some(Err(error)) => Err(format!("{topic} cannot be written to: {error}")),
            Some(Ok(known)) if known.contains(&target.partition.partition) => Ok(()),
            Some(Ok(_)) => Err(format!("there is no partition {}", target.partition)),
        }
    }

    /// Sends records and waits until each is acknowledged or given up: `None` or why, in their order.
    fn send(&self, records: &[Returning]) -> Result<Vec<Option<KafkaError>>, SourceError> {
        self.producer.context().failed.lock().clear();
        let deadline = Instant::now() + DELIVER_WITHIN;
        let mut outcomes: Vec<Option<KafkaError>> = records
            .iter()
            .enumerate()
            .map(|(place, record)| self.enqueue(place, record, deadline).err())
            .collect();
        let left = deadline.saturating_duration_since(Instant::now());
        self.producer
            .flush(left)
            .map_err(|error| self.stopped(&error))?;
        for (place, error) in self.producer.context().failed.lock().drain() {
            // A broker that is away takes none of those that follow either.
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageTimedOut) {
                return Err(self.stopped(&error));
            }
            if let Some(outcome) = outcomes.get_mut(place) {
                *outcome = Some(error);
            }
        }
        Ok(outcomes)
    }

    fn enqueue(
        &self,
        place: usize,
        returning: &Returning,
        deadline: Instant,
    ) -> Result<(), KafkaError> {
        let partition = &returning.target.partition;
        let mut next = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&partition.topic, place);
        next.partition = Some(partition.partition);
        next.key = returning.key.as_deref();
        next.payload = returning.value.as_deref();
        next.timestamp = returning.timestamp_ms;
        next.headers = client_headers(&returning.headers);
        send_before(&self.producer, next, deadline)
    }

    fn stopped(&self, error: &KafkaError) -> SourceError {
        SourceError::Transient(format!(
            "records could not be sent back: {error}: {}; what was sent before is there, and sending it once \
             more is harmless",
            self.producer.context().faults.describe()
        ))
    }
}
