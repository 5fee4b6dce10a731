//! A pipeline in miniature for tests of the Kafka source, over whatever broker there is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tcbert_worker::kafka::{KafkaSettings, KafkaSource, RangeJob, SampleRecord, SourceCounters};
use tcbert_worker::source::{
    CommitMode, CommitOffset, Events, Source, SourceError, SourceEvent, SourceRecord,
};
use tcbert_worker::watermark::Watermarks;

/// Longest that a test waits for something that should happen soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn records(range: std::ops::Range<usize>, partitions: i32) -> Vec<SampleRecord> {
    range
        .map(|n| {
            let partition = i32::try_from(n).unwrap() % partitions;
            SampleRecord::new(&format!("doc-{n}"), format!("value {n}")).to_partition(partition)
        })
        .collect()
}

pub(crate) fn keys(range: std::ops::Range<usize>) -> BTreeSet<String> {
    range.map(|n| format!("doc-{n}")).collect()
}

/// A pipeline in miniature: takes what is delivered, acknowledges it at once unless told not to.
pub(crate) struct Reader {
    pub(crate) source: KafkaSource,
    pub(crate) events: Events,
    pub(crate) watermarks: Watermarks,
    pub(crate) keys: Vec<String>,
    pub(crate) records: Vec<SourceRecord>,
    pub(crate) failure: Option<SourceError>,
    pub(crate) acknowledges: bool,
    /// Time that each chunk takes.
    pub(crate) pace: Duration,
    pub(crate) ended: bool,
    pub(crate) revoked: usize,
    pub(crate) lost: usize,
}

impl Reader {
    pub(crate) fn start(settings: &KafkaSettings) -> Self {
        Self::over(KafkaSource::start(settings).unwrap())
    }

    /// Reads a bounded job.
    pub(crate) fn start_range(settings: &KafkaSettings, job: &RangeJob) -> Self {
        let source = KafkaSource::start_range(settings, job, None).unwrap();
        Self::over(source.unwrap())
    }

    pub(crate) fn over(source: KafkaSource) -> Self {
        Self {
            events: source.events(),
            source,
            watermarks: Watermarks::new(),
            keys: Vec::new(),
            records: Vec::new(),
            failure: None,
            acknowledges: true,
            pace: Duration::ZERO,
            ended: false,
            revoked: 0,
            lost: 0,
        }
    }

    pub(crate) fn handle(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Records(records) => {
                assert!(!records.is_empty());
                std::thread::sleep(self.pace);
                for record in records {
                    let receipt = record.receipt();
                    if !self.watermarks.deliver(&receipt) {
                        continue;
                    }
                    if self.acknowledges {
                        self.watermarks.acknowledge([&receipt]);
                    }
                    let key = record.key.clone().unwrap_or_default();
                    self.keys.push(String::from_utf8(key).unwrap());
                    self.records.push(record);
                }
            }
            SourceEvent::Assigned {
                partitions,
                generation,
            } => self.watermarks.assign(&partitions, generation),
            SourceEvent::Revoked { partitions, reply } => {
                self.revoked += partitions.len();
                reply.send(self.watermarks.revoke(&partitions)).unwrap();
            }
            SourceEvent::Lost { partitions } => {
                self.lost += partitions.len();
                self.watermarks.lose(&partitions);
            }
            SourceEvent::Ended => {
                assert!(
                    self.source.range_progress().is_some(),
                    "a source without end has ended"
                );
                self.ended = true;
            }
            SourceEvent::Failed(error) => self.failure = Some(error),
        }
    }

    /// Handles events for a while.
    pub(crate) fn run_for(&mut self, duration: Duration) {
        let deadline = Instant::now() + duration;
        self.run_until(deadline, |_| false);
    }

    /// Handles events until `done`, and panics where that takes too long.
    pub(crate) fn run_to(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let reached = self.run_until(Instant::now() + PATIENCE, done);
        assert!(
            reached,
            "{what}: not reached; {} records, failure {:?}, counters {:?}",
            self.keys.len(),
            self.failure,
            self.source.counters()
        );
    }

    fn run_until(&mut self, deadline: Instant, done: impl Fn(&Self) -> bool) -> bool {
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            match self
                .events
                .recv_timeout(left.min(Duration::from_millis(20)))
            {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return done(self),
            }
        }
        true
    }

    /// Waits without taking anything until the counters are as they should be.
    pub(crate) fn watch(&self, what: &str, done: impl Fn(&SourceCounters) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counters = self.source.counters();
            if done(&counters) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: not reached: {counters:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn commit(&mut self, mode: CommitMode) -> Result<Vec<CommitOffset>, SourceError> {
        let offsets = self.watermarks.committable();
        self.source.commit(&offsets, mode)?;
        self.watermarks.mark_committed(&offsets);
        Ok(offsets)
    }

    /// Handles events and commits, as a pipeline does, until the bounded job has ended.
    pub(crate) fn run_to_the_end(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.ended {
            self.run_for(Duration::from_millis(10));
            self.commit(CommitMode::Background).unwrap();
            assert!(
                Instant::now() < deadline && self.failure.is_none(),
                "no end: {} records, progress {:?}, failure {:?}",
                self.keys.len(),
                self.source.range_progress(),
                self.failure
            );
        }
    }

    pub(crate) fn read_all(&mut self, count: usize) {
        self.run_to("all records", |reader| reader.keys.len() >= count);
    }

    pub(crate) fn unique_keys(&self) -> BTreeSet<String> {
        self.keys.iter().cloned().collect()
    }

    pub(crate) fn partitions(&self) -> usize {
        self.source.partitions().len()
    }
}

/// Writes documents in transactions.
pub(crate) struct Transactions {
    producer: BaseProducer,
    topic: String,
}

impl Transactions {
    pub(crate) fn begin(brokers: &str, topic: &str) -> Self {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("transactional.id", topic)
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        Self {
            producer,
            topic: topic.to_owned(),
        }
    }

    /// One transaction, which is committed or taken back.
    pub(crate) fn send(&self, range: std::ops::Range<usize>, kept: bool) {
        self.producer.begin_transaction().unwrap();
        for number in range {
            let (key, value) = (format!("doc-{number}"), format!("value {number}"));
            let record = BaseRecord::to(&self.topic).key(&key).payload(&value);
            self.producer.send(record).unwrap();
        }
        self.producer.flush(PATIENCE).unwrap();
        if kept {
            self.producer.commit_transaction(PATIENCE).unwrap();
        } else {
            self.producer.abort_transaction(PATIENCE).unwrap();
        }
    }
}

pub(crate) fn failure_of(settings: &KafkaSettings) -> String {
    let mut reader = Reader::start(settings);
    reader.run_to("a failure", |reader| reader.failure.is_some());
    assert!(
        reader.keys.is_empty(),
        "nothing is delivered after a refusal"
    );
    match reader.failure.unwrap() {
        SourceError::Fatal(text) => text,
        SourceError::Transient(text) => panic!("not fatal: {text}"),
    }
}
