//! A producer that sends many records at once and comes back when each is acknowledged: for replays, samples
//! and measurements.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header as ClientHeader, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use crate::kafka::client::{self, Faults};
use crate::source::Header;

/// Longest wait for the records of one call to be acknowledged.
const DELIVER_WITHIN: Duration = Duration::from_secs(60);

/// Wait for room in the producer's own queue.
const QUEUE_WAIT: Duration = Duration::from_millis(10);

/// Why the embedded broker or its producer failed.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The cluster could not be started, or refused what it was asked for.
    #[error("the embedded broker failed: {0}")]
    Broker(String),
    /// Records were not acknowledged.
    #[error("{failed} of {sent} records were not delivered: {reason}")]
    Undelivered {
        /// Records handed over.
        sent: usize,
        /// Records that were refused or got no answer in time.
        failed: usize,
        /// The last reason given.
        reason: String,
    },
}

/// A record to produce.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SampleRecord {
    /// Partition; the key decides where absent.
    pub partition: Option<i32>,
    /// Key; absent is null.
    pub key: Option<Vec<u8>>,
    /// Value; absent is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers in their order.
    pub headers: Vec<Header>,
    /// Milliseconds since the epoch; now where absent.
    pub timestamp_ms: Option<i64>,
}

impl SampleRecord {
    /// A record of a key and a value.
    pub fn new(key: &str, value: impl Into<Vec<u8>>) -> Self {
        Self {
            key: Some(key.as_bytes().to_vec()),
            value: Some(value.into()),
            ..Self::default()
        }
    }

    /// The deletion of a key.
    pub fn tombstone(key: &str) -> Self {
        Self {
            key: Some(key.as_bytes().to_vec()),
            ..Self::default()
        }
    }

    /// The same record for one partition.
    #[must_use]
    pub fn to_partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The same record with a timestamp.
    #[must_use]
    pub fn at(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }
}

/// Counts what was delivered; the numbers travel as the context of each call.
#[derive(Debug, Default)]
struct Receipts {
    faults: Faults,
    failed: parking_lot::Mutex<(usize, String)>,
}

impl rdkafka::ClientContext for Receipts {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        client::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client::report(&self.faults, &error, reason);
    }
}

impl ProducerContext for Receipts {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut failed = self.failed.lock();
            failed.0 += 1;
            failed.1 = error.to_string();
        }
    }
}

/// A producer for samples, tests and benches: many records at once, and back only when each is
/// acknowledged.
pub struct SampleProducer {
    producer: BaseProducer<Receipts>,
}

impl SampleProducer {
    /// A producer for the brokers at `bootstrap_servers`.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn new(bootstrap_servers: &str) -> Result<Self, EmbeddedError> {
        Self::with_properties(bootstrap_servers, &[])
    }

    /// A producer with further librdkafka properties.
    ///
    /// # Errors
    /// When a property is refused.
    pub fn with_properties(
        bootstrap_servers: &str,
        properties: &[(&str, &str)],
    ) -> Result<Self, EmbeddedError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap_servers)
            .set("acks", "all")
            .set("linger.ms", "5")
            // The key decides the partition as it does for Java's clients.
            .set("partitioner", "murmur2_random")
            .set("enable.metrics.push", "false");
        for (name, value) in properties {
            config.set(*name, *value);
        }
        Self::with_config(&config)
    }

    pub(super) fn with_config(config: &ClientConfig) -> Result<Self, EmbeddedError> {
        let producer = config
            .create_with_context(Receipts::default())
            .map_err(|error| EmbeddedError::Broker(error.to_string()))?;
        Ok(Self { producer })
    }

    /// Produces records in their order and waits until each is acknowledged.
    ///
    /// # Errors
    /// When one was refused or got no answer within a minute.
    pub fn produce(&self, topic: &str, records: &[SampleRecord]) -> Result<(), EmbeddedError> {
        *self.producer.context().failed.lock() = (0, String::new());
        let deadline = Instant::now() + DELIVER_WITHIN;
        for record in records {
            self.enqueue(topic, record, deadline)
                .map_err(|error| self.undelivered(records.len(), &error))?;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        self.producer
            .flush(left)
            .map_err(|error| self.undelivered(records.len(), &error))?;
        let (failed, reason) = self.producer.context().failed.lock().clone();
        if failed > 0 {
            return Err(EmbeddedError::Undelivered {
                sent: records.len(),
                failed,
                reason,
            });
        }
        Ok(())
    }

    fn enqueue(&self, topic: &str, record: &SampleRecord, deadline: Instant) -> KafkaResult<()> {
        let mut next = BaseRecord::<[u8], [u8]>::to(topic);
        next.partition = record.partition;
        next.key = record.key.as_deref();
        next.payload = record.value.as_deref();
        next.timestamp = record.timestamp_ms;
        next.headers = client_headers(&record.headers);
        send_before(&self.producer, next, deadline)
    }

    fn undelivered(&self, sent: usize, error: &KafkaError) -> EmbeddedError {
        let pending = usize::try_from(self.producer.in_flight_count()).unwrap_or(sent);
        EmbeddedError::Undelivered {
            sent,
            failed: pending.max(1),
            reason: format!("{error}: {}", self.producer.context().faults.describe()),
        }
    }
}

/// Hands a record to the client, waiting for room in its queue.
///
/// # Errors
/// When the client does not take it before the deadline.
pub(super) fn send_before<C: ProducerContext>(
    producer: &BaseProducer<C>,
    mut record: BaseRecord<'_, [u8], [u8], C::DeliveryOpaque>,
    deadline: Instant,
) -> KafkaResult<()> {
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                if Instant::now() < deadline =>
            {
                record = back;
                producer.poll(QUEUE_WAIT);
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Headers in the client's form; none where there are none.
pub(super) fn client_headers(headers: &[Header]) -> Option<OwnedHeaders> {
    if headers.is_empty() {
        return None;
    }
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    Some(headers.iter().fold(empty, |list, header| {
        list.insert(ClientHeader {
            key: &header.name,
            value: header.value.as_deref(),
        })
    }))
}
