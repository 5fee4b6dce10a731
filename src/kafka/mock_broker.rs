//! The broker of the demo and of tests: librdkafka's mock cluster on loopback, in this process,
//! gone when dropped.
//!
//! The mock trims a partition's log at 5 MB or 100,000 batches without a word: spread what is
//! preloaded over partitions.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use rdkafka::error::KafkaResult;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::kafka::dead_letter::{DeadLetterFilter, StoredDeadLetter, list_dead_letters};
use crate::kafka::inspect::group_positions;
use crate::kafka::producer::{EmbeddedError, SampleProducer, SampleRecord};
use crate::kafka::settings::KafkaSettings;
use crate::source::SourceError;

/// Longest wait for the cluster to start.
const START_WITHIN: Duration = Duration::from_secs(10);

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Job = Box<dyn FnOnce(&Cluster) + Send>;

/// A Kafka cluster in this process. The cluster lives on a thread of its own, since librdkafka's
/// handle must not leave the thread that made it.
pub struct EmbeddedBroker {
    jobs: Option<Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    bootstrap_servers: String,
}

impl EmbeddedBroker {
    /// Starts one broker on a free port of the loopback interface, with topics of so many
    /// partitions each.
    ///
    /// # Errors
    /// When the cluster cannot be made.
    pub fn start(topics: &[(&str, i32)]) -> Result<Self, EmbeddedError> {
        let broker = Self::start_cluster(1)?;
        for (topic, partitions) in topics {
            broker.create_topic(topic, *partitions)?;
        }
        Ok(broker)
    }

    /// Starts `brokers` brokers on free ports of the loopback interface.
    ///
    /// # Errors
    /// When the cluster cannot be made.
    pub fn start_cluster(brokers: i32) -> Result<Self, EmbeddedError> {
        let (jobs, work): (Sender<Job>, Receiver<Job>) = bounded(1);
        let (ready, started) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("embedded-kafka".to_owned())
            .spawn(move || match Cluster::new(brokers) {
                Ok(cluster) => {
                    let _ = ready.send(Ok(cluster.bootstrap_servers()));
                    for job in work {
                        job(&cluster);
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error.to_string()));
                }
            })
            .map_err(|error| EmbeddedError::Broker(error.to_string()))?;
        let bootstrap_servers = started
            .recv_timeout(START_WITHIN)
            .map_err(|error| EmbeddedError::Broker(error.to_string()))?
            .map_err(EmbeddedError::Broker)?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            bootstrap_servers,
        })
    }

    /// Where the brokers listen, as `kafka.brokers` wants it.
    pub fn bootstrap_servers(&self) -> String {
        self.bootstrap_servers.clone()
    }

    /// Produces records in their order and waits until each is acknowledged.
    ///
    /// # Errors
    /// When one was refused or got no answer in time.
    pub async fn produce(
        &self,
        topic: &str,
        records: Vec<SampleRecord>,
    ) -> Result<(), EmbeddedError> {
        let (servers, topic) = (self.bootstrap_servers.clone(), topic.to_owned());
        tokio::task::spawn_blocking(move || {
            SampleProducer::new(&servers)?.produce(&topic, &records)
        })
        .await
        .map_err(|error| EmbeddedError::Broker(error.to_string()))?
    }

    /// The sum of the offsets that the group has committed, over all partitions of its topics: how
    /// many records it is done with, where nothing has expired.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn committed(&self, settings: &KafkaSettings) -> Result<i64, SourceError> {
        let positions = group_positions(settings)?;
        Ok(positions
            .iter()
            .filter_map(|position| position.committed)
            .sum())
    }

    /// All letters in the dead-letter topic.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn read_dead_letters(
        &self,
        settings: &KafkaSettings,
    ) -> Result<Vec<StoredDeadLetter>, SourceError> {
        list_dead_letters(settings, &DeadLetterFilter::default())
    }

    /// Makes a topic with `partitions` partitions.
    ///
    /// # Errors
    /// When the topic exists already.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), EmbeddedError> {
        let topic = topic.to_owned();
        self.ask(move |cluster| cluster.create_topic(&topic, partitions, 1))
    }

    /// Cuts every connection of one broker (-1: all) and takes no new ones.
    ///
    /// # Errors
    /// When there is no such broker.
    pub fn broker_down(&self, broker: i32) -> Result<(), EmbeddedError> {
        self.ask(move |cluster| cluster.broker_down(broker))
    }

    /// Lets one broker (-1: all) take connections again.
    ///
    /// # Errors
    /// When there is no such broker.
    pub fn broker_up(&self, broker: i32) -> Result<(), EmbeddedError> {
        self.ask(move |cluster| cluster.broker_up(broker))
    }

    /// Delays every answer of all brokers.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub fn delay_answers(&self, by: Duration) -> Result<(), EmbeddedError> {
        self.ask(move |cluster| cluster.broker_round_trip_time(-1, by))
    }

    /// Makes the next `times` requests of a kind fail.
    ///
    /// # Errors
    /// When the cluster is gone.
    pub fn fail_requests(
        &self,
        request: FailingRequest,
        error: InjectedError,
        times: usize,
    ) -> Result<(), EmbeddedError> {
        let errors = vec![error.code(); times];
        self.ask(move |cluster| {
            cluster.request_errors(request.key(), &errors);
            Ok(())
        })
    }

    /// Moves a partition to another broker (numbered from 1).
    ///
    /// # Errors
    /// When there is no such partition or broker.
    pub fn move_leader(
        &self,
        topic: &str,
        partition: i32,
        broker: i32,
    ) -> Result<(), EmbeddedError> {
        let topic = topic.to_owned();
        self.ask(move |cluster| cluster.partition_leader(&topic, partition, Some(broker)))
    }

    fn ask(
        &self,
        job: impl FnOnce(&Cluster) -> KafkaResult<()> + Send + 'static,
    ) -> Result<(), EmbeddedError> {
        let gone = || EmbeddedError::Broker("its thread has ended".to_owned());
        let (reply, answer) = bounded(1);
        let job: Job = Box::new(move |cluster| {
            let _ = reply.send(job(cluster));
        });
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        let outcome = answer.recv().map_err(|_| gone())?;
        outcome.map_err(|error| EmbeddedError::Broker(error.to_string()))
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Requests that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailingRequest {
    /// Producing records.
    Produce,
    /// Fetching records.
    Fetch,
    /// Committing offsets.
    OffsetCommit,
    /// Reading committed offsets.
    OffsetFetch,
    /// Telling the group that a member lives.
    Heartbeat,
}

impl FailingRequest {
    fn key(self) -> RDKafkaApiKey {
        match self {
            Self::Produce => RDKafkaApiKey::Produce,
            Self::Fetch => RDKafkaApiKey::Fetch,
            Self::OffsetCommit => RDKafkaApiKey::OffsetCommit,
            Self::OffsetFetch => RDKafkaApiKey::OffsetFetch,
            Self::Heartbeat => RDKafkaApiKey::Heartbeat,
        }
    }
}

/// How a request is made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InjectedError {
    /// The connection breaks.
    Disconnect,
    /// The broker leads the partition no more.
    NotLeader,
    /// The coordinator is elsewhere.
    NotCoordinator,
    /// The record is larger than the broker takes.
    TooLarge,
    /// The user may not.
    NotAuthorized,
    /// The partition does not have the offset.
    OffsetOutOfRange,
    /// An error that says nothing; the client does not try again by itself.
    Unknown,
}

impl InjectedError {
    fn code(self) -> RDKafkaRespErr {
        use RDKafkaRespErr as Code;
        match self {
            Self::Disconnect => Code::RD_KAFKA_RESP_ERR__TRANSPORT,
            Self::NotLeader => Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            Self::NotCoordinator => Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            Self::TooLarge => Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
            Self::Unknown => Code::RD_KAFKA_RESP_ERR_UNKNOWN,
            Self::NotAuthorized => Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            Self::OffsetOutOfRange => Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,
        }
    }
}
