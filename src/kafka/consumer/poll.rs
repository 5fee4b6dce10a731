//! The poll thread: it alone polls the client, so membership never waits for the pipeline. Records
//! become bounded chunks; a full channel pauses the partitions and polling goes on.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};

use crate::digest;
use crate::document::{RecordPosition, TopicPartition};
use crate::kafka::consumer::assignment::held::Begin;
use crate::kafka::consumer::assignment::held::Held;
use crate::kafka::consumer::check::compare;
use crate::kafka::consumer::damage::{self, Search};
use crate::kafka::consumer::rebalance::{self, Other};
use crate::kafka::consumer::shared::{GroupConsumer, Phase, Shared};
use crate::kafka::{client, offsets, text};
use crate::source::{Header, LARGEST_VALUE, RecordFault, SourceError, SourceEvent, SourceRecord};
use crate::telemetry::LogLimit;

/// Chunks that may wait in the channel; the queue's bounds are divided among them.
pub(in crate::kafka) const QUEUE_CHUNKS: usize = 8;
/// Longest wait for a record; a stop or a close is seen this late.
const POLL_WAIT: Duration = Duration::from_millis(50);
/// How long a full chunk waits for room before fetching is paused: a pause throws away what the
/// client has fetched ahead, a short wait does not.
const PAUSE_AFTER: Duration = Duration::from_millis(100);
/// How often a chunk that finds no room looks again; the full queue before it lasts far longer.
const ROOM_CHECK: Duration = Duration::from_millis(10);
/// Pause before it is checked again from where partitions go on.
const CHECK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Bytes kept of a value that is too large.
const KEPT_OF_TOO_LARGE: usize = 4096;
/// How often a batch that fails its checksum is read again.
const DAMAGE_REREADS: u32 = 3;
/// Damage that is further apart has nothing to do with that before.
const DAMAGE_COUNTS: Duration = Duration::from_secs(60);
/// How often the same trouble is spoken of.
const REPEAT_LOG_AFTER: Duration = Duration::from_secs(30);

pub(in crate::kafka) struct PollThread {
    pub(in crate::kafka) consumer: Arc<GroupConsumer>,
    pub(in crate::kafka) shared: Arc<Shared>,
    pub(in crate::kafka) records: Sender<SourceEvent>,
    /// Since when the chunk has been full without room for it.
    full_since: Option<Instant>,
    said: Vec<(RDKafkaErrorCode, LogLimit)>,
    quiet: bool,
    said_ended: bool,
    /// Partitions that may begin.
    begins: Receiver<Begin>,
    /// When to check again from where partitions go on: the client says only once that it gave up.
    check_at: Option<Instant>,
    /// When a batch was last found damaged, and how often in a row.
    damaged: Option<(Instant, u32)>,
    /// Finds out which batch that is.
    search: Search,
}

impl PollThread {
    pub(in crate::kafka) fn new(
        consumer: Arc<GroupConsumer>,
        shared: Arc<Shared>,
        records: Sender<SourceEvent>,
        begins: Receiver<Begin>,
        search: Search,
    ) -> Self {
        Self {
            consumer,
            shared,
            records,
            full_since: None,
            said: Vec::new(),
            quiet: false,
            said_ended: false,
            begins,
            check_at: None,
            damaged: None,
            search,
        }
    }

    /// Polls until the source is closed. Dropping the client then leaves the group: it polls on until
    /// that is done.
    pub(in crate::kafka) fn run(mut self) {
        while self.shared.phase() != Phase::Closing {
            if !self.shared.delivers() {
                self.fall_quiet();
            }
            if self.waits_for_room() {
                continue;
            }
            let wait = if self.quiet || self.shared.desk.lock().chunk_is_empty() {
                POLL_WAIT
            } else if self.has_room() {
                Duration::ZERO
            } else {
                ROOM_CHECK
            };
            let consumer = Arc::clone(&self.consumer);
            let idle = match consumer.poll(wait) {
                Some(Ok(message)) => {
                    self.take(&message);
                    false
                }
                Some(Err(error)) => {
                    self.on_error(&error);
                    true
                }
                None => true,
            };
            self.pass_on(idle);
            self.begin_checked();
            if self.check_at.is_some_and(|at| Instant::now() >= at) {
                self.check_again();
            }
            self.look_for_the_end();
        }
    }

    /// Stops fetching for good while staying a member.
    fn fall_quiet(&mut self) {
        if self.quiet {
            return;
        }
        self.quiet = true;
        self.full_since = None;
        let dropped = {
            let mut desk = self.shared.desk.lock();
            desk.paused = true;
            desk.take_chunk().len()
        };
        self.shared.counters.dropped.add(dropped as u64);
        self.pause_all();
    }

    /// With a full chunk and no room: waits a little, then pauses, so that polling can go on.
    fn waits_for_room(&mut self) -> bool {
        if self.quiet || self.has_room() || !self.shared.desk.lock().chunk_is_full() {
            self.full_since = None;
            return false;
        }
        let since = *self.full_since.get_or_insert_with(Instant::now);
        if since.elapsed() < PAUSE_AFTER {
            thread::sleep(ROOM_CHECK);
            return true;
        }
        let already = std::mem::replace(&mut self.shared.desk.lock().paused, true);
        if !already {
            self.shared.counters.pauses.add(1);
            tracing::debug!("the pipeline is behind; fetching is paused");
            self.pause_all();
        }
        false
    }

    /// Only this thread sends records, so room that is seen stays.
    fn has_room(&self) -> bool {
        self.records.len() < QUEUE_CHUNKS
    }

    fn pause_all(&self) {
        let partitions = self.shared.desk.lock().partitions();
        if let Err(error) = self.consumer.pause(&offsets::list(&partitions)) {
            tracing::warn!(%error, "partitions could not be paused");
        }
    }

    fn resume_all(&mut self) {
        let partitions: Vec<TopicPartition> = {
            let mut desk = self.shared.desk.lock();
            desk.paused = false;
            let reading = desk.all().filter(|held| !held.ended && !held.checking);
            reading.map(|held| held.partition.clone()).collect()
        };
        tracing::debug!("the pipeline has caught up; fetching goes on");
        if let Err(error) = self.consumer.resume(&offsets::list(&partitions)) {
            tracing::warn!(%error, "partitions could not be resumed");
        }
    }

    /// Puts a record into the chunk, if it is still ours.
    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let offset = message.offset();
        let identity = compare::identity(message);
        let mut desk = self.shared.desk.lock();
        let held = desk.get_mut(message.topic(), message.partition());
        let Some(held) =
            held.filter(|held| !held.leaving && !held.checking && !held.ended && !self.quiet)
        else {
            self.shared.counters.dropped.add(1);
            return;
        };
        if held.end.is_some_and(|end| offset >= end) {
            let (partition, generation) = (held.partition.clone(), held.generation);
            let next = held.next.unwrap_or(offset);
            desk.reach_end(&partition, generation, next);
            return;
        }
        if let Some(job) = &self.shared.job
            && !is_deletion(message)
            && job.is_behind_range(&held.partition, offset)
        {
            let partition = held.partition.clone();
            self.shared.counters.skipped.add(1);
            desk.skip(&partition, offset);
            return;
        }
        let (value, fault) = value_of(message);
        held.next = Some(offset + 1);
        // To read a value again that is not kept would hold it a second time.
        if message.payload_len() <= LARGEST_VALUE {
            held.delivered.push(identity);
        }
        held.delivered_next = held.next;
        held.ended = held.end.is_some_and(|end| offset + 1 >= end);
        let record = SourceRecord {
            position: RecordPosition {
                partition: held.partition.clone(),
                offset,
            },
            generation: held.generation,
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value,
            headers: headers_of(message),
            fault,
        };
        self.shared.counters.records.add(1);
        self.shared.counters.bytes.add(record.size_bytes() as u64);
        desk.push(record);
    }

    /// Sends the chunk where it is full or nothing more is at hand, and there is room.
    fn pass_on(&mut self, idle: bool) {
        if self.quiet || !self.has_room() {
            return;
        }
        let chunk = {
            let mut desk = self.shared.desk.lock();
            if desk.chunk_is_empty() || !(idle || desk.chunk_is_full()) {
                Vec::new()
            } else {
                desk.take_chunk()
            }
        };
        if !chunk.is_empty() {
            self.send(SourceEvent::Records(chunk));
        }
        let paused = self.shared.desk.lock().paused;
        if paused && self.records.len() <= QUEUE_CHUNKS / 2 {
            self.resume_all();
        }
    }

    /// Sends where there is room; there is always for the end.
    fn send(&self, event: SourceEvent) {
        match self.records.try_send(event) {
            Ok(()) => {}
            // Cannot be full: only this thread sends. The reader is gone otherwise.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.advance(Phase::Stopped);
            }
        }
    }

    fn on_error(&mut self, error: &KafkaError) {
        let Some(code) = error.rdkafka_error_code() else {
            tracing::debug!(%error, "kafka client");
            return;
        };
        match code {
            RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::NoOffset => {
                self.check_again();
            }
            RDKafkaErrorCode::BadMessage => self.on_damage(),
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => {
                if self.says(code) {
                    let reason = self.shared.faults.describe();
                    tracing::warn!(reason, "a topic does not exist yet; waiting for it");
                }
            }
            RDKafkaErrorCode::PollExceeded => {
                tracing::warn!("polling stood still beyond kafka.max_poll_interval_ms");
            }
            _ if client::is_permanent(code)
                || matches!(error, KafkaError::MessageConsumptionFatal(_)) =>
            {
                let reason = self.shared.faults.describe();
                let text = format!("kafka does not let the worker consume: {error}: {reason}");
                self.consumer.context().fail(SourceError::Fatal(text));
            }
            _ => {
                if self.says(code) {
                    let reason = self.shared.faults.describe();
                    tracing::warn!(%error, reason, "kafka is in trouble; trying again");
                }
            }
        }
    }

    /// The client has found a batch that fails its checksum, and passes over it. What was damaged on
    /// the way is whole when it is read again; what is damaged on the broker's disk ends the worker.
    fn on_damage(&mut self) {
        let places = self.places();
        if !self.check_again() {
            return;
        }
        let recent = self.damaged.filter(|(at, _)| at.elapsed() < DAMAGE_COUNTS);
        let times = recent.map_or(0, |(_, times)| times);
        self.damaged = Some((Instant::now(), times + 1));
        if times < DAMAGE_REREADS {
            self.search.begin(places, damage::log);
            return;
        }
        // Until the search is over each damaged batch leads to another check, so that none is passed over.
        let consumer = Arc::downgrade(&self.consumer);
        self.search.begin(places, move |found| {
            let text = damage::last_words(found);
            if let Some(consumer) = consumer.upgrade() {
                consumer.context().fail(SourceError::Fatal(text));
            }
        });
    }

    /// Where the partitions that are being read go on.
    fn places(&self) -> Vec<RecordPosition> {
        let desk = self.shared.desk.lock();
        let reading = desk.all().filter(|held| !held.checking && !held.ended);
        let place = |held: &Held| {
            Some(RecordPosition {
                partition: held.partition.clone(),
                offset: held.next.max(held.position)?,
            })
        };
        reading.filter_map(place).collect()
    }

    /// Whether trouble of this kind is to be spoken of again.
    fn says(&mut self, code: RDKafkaErrorCode) -> bool {
        let now = Instant::now();
        if let Some((_, limit)) = self.said.iter().find(|(said, _)| *said == code) {
            return limit.is_due(now);
        }
        let limit = LogLimit::new(REPEAT_LOG_AFTER);
        let is_due = limit.is_due(now);
        self.said.push((code, limit));
        is_due
    }

    /// The client found an offset that the topic does not have, or passed over a damaged batch, and
    /// does not say of which partition: all that are being read are paused, and the check thread
    /// decides where they go on. False where there is nothing to check.
    fn check_again(&mut self) -> bool {
        self.check_at = None;
        let request = self.shared.desk.lock().check_again();
        if request.is_empty() {
            return false;
        }
        let partitions: Vec<TopicPartition> = request
            .iter()
            .map(|(partition, _)| partition.clone())
            .collect();
        if let Err(error) = self.consumer.pause(&offsets::list(&partitions)) {
            tracing::warn!(%error, "partitions could not be paused");
        }
        self.consumer.context().check(request);
        true
    }

    /// Reads on in partitions whose logs were checked.
    fn begin_checked(&mut self) {
        let begins: Vec<Begin> = self.begins.try_iter().collect();
        if begins.is_empty() {
            return;
        }
        let (starts, others, paused) = {
            let mut desk = self.shared.desk.lock();
            let mut starts = Vec::with_capacity(begins.len());
            for begin in begins {
                if desk.begin(&begin) && !desk.has_ended(&begin.partition) {
                    starts.push((begin.partition, begin.at));
                }
            }
            let paused = desk.paused || self.quiet;
            let starting = |partition: &TopicPartition| starts.iter().any(|(p, _)| p == partition);
            let others: Vec<Other> = desk
                .all()
                .filter(|held| !starting(&held.partition))
                .map(|held| Other {
                    partition: held.partition.clone(),
                    // Where nothing was delivered yet, an offset that is gone leads to another check.
                    at: held.next.unwrap_or(0),
                    rests: paused || held.checking || held.ended || held.leaving,
                })
                .collect();
            (starts, others, paused)
        };
        if starts.is_empty() {
            return;
        }
        let list = offsets::list(&offsets::partitions_in(&starts));
        let moved = rebalance::move_to(&self.consumer, &starts, &others).and_then(|()| {
            // A pause outlives neither side's memory of it: say it either way.
            if paused {
                self.consumer.pause(&list)
            } else {
                self.consumer.resume(&list)
            }
        });
        if let Err(error) = moved {
            tracing::warn!(%error, "partitions could not be read from where they should be");
            self.check_at = Some(Instant::now() + CHECK_AGAIN_AFTER);
        }
    }

    /// A bounded source stops to fetch what has reached its end, and has ended once everything of
    /// the job is committed, whoever did it: until then it stands by to take partitions over.
    fn look_for_the_end(&mut self) {
        let Some(job) = self.shared.job.as_ref().filter(|_| !self.said_ended) else {
            return;
        };
        let finished = job.is_finished();
        let ended = self.shared.desk.lock().take_newly_ended();
        if !ended.is_empty()
            && let Err(error) = self.consumer.pause(&offsets::list(&ended))
        {
            tracing::warn!(%error, "partitions that were read to their end could not be paused");
        }
        if finished {
            self.said_ended = true;
            self.send(SourceEvent::Ended);
        }
    }
}

/// A message's value, or the beginning of one that is too large to be held beside the client's own copy.
fn value_of(message: &BorrowedMessage<'_>) -> (Option<Vec<u8>>, Option<RecordFault>) {
    match message.payload() {
        Some(value) if value.len() > LARGEST_VALUE => {
            let kept = value.get(..KEPT_OF_TOO_LARGE).unwrap_or(value);
            let fault = RecordFault::TooLarge {
                bytes: value.len(),
                sha256: digest::of_bytes(value).into(),
            };
            (Some(kept.to_vec()), Some(fault))
        }
        value => (value.map(<[u8]>::to_vec), None),
    }
}

/// Whether a message deletes the document of its key.
fn is_deletion(message: &BorrowedMessage<'_>) -> bool {
    message.payload().is_none() && message.key().is_some()
}

/// A message's headers in our form. One whose name is not UTF-8 is left out: the client does not
/// give it.
pub(in crate::kafka) fn headers_of(message: &BorrowedMessage<'_>) -> Vec<Header> {
    let Some(headers) = message.headers() else {
        return Vec::new();
    };
    let header = |at| {
        let Some(header) = text::guarded(|| headers.try_get(at)) else {
            tracing::warn!(
                topic = message.topic(),
                partition = message.partition(),
                offset = message.offset(),
                "a header whose name is not UTF-8 is left out"
            );
            return None;
        };
        let header = header?;
        Some(Header {
            name: header.key.to_owned(),
            value: header.value.map(<[u8]>::to_vec),
        })
    };
    (0..headers.count()).filter_map(header).collect()
}
