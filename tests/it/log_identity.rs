//! Logs that are replaced under a committed or known offset, on Apache Kafka: recreated topics, an
//! unclean leader election, and what stays allowed.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode as ClientCommit, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tcbert_worker::kafka::{
    CountStoredBeyond, KafkaSettings, KafkaSource, Properties, RangeJob, RangeSpec, SampleProducer,
    SampleRecord,
};
use tcbert_worker::source::{CommitMode, Source, SourceError};
use tcbert_worker::telemetry::Metrics;

use crate::apache_kafka::{self, ApacheKafka, unique};
use crate::kafka_reader::{PATIENCE, Reader, Transactions, failure_of, keys, records};

/// A topic of one partition with a group to read it.
struct Ground<'a> {
    kafka: &'a ApacheKafka,
    topic: String,
}

impl<'a> Ground<'a> {
    fn new(kafka: &'a ApacheKafka) -> Self {
        let ground = Self {
            kafka,
            topic: unique("log"),
        };
        kafka.create_topic(&ground.topic, 1, &[]);
        ground
    }

    fn settings(&self) -> KafkaSettings {
        KafkaSettings {
            brokers: self.kafka.bootstrap_servers().to_owned(),
            topic: self.topic.clone(),
            group_id: format!("{}-readers", self.topic),
            session_timeout_ms: 6_000,
            commit_interval_ms: 100,
            ..KafkaSettings::default()
        }
    }

    /// By a producer of its own: one that knew the topic before would not find it again.
    fn produce(&self, records: &[SampleRecord]) {
        let producer = SampleProducer::new(self.kafka.bootstrap_servers()).unwrap();
        producer.produce(&self.topic, records).unwrap();
    }

    /// Deletes the topic and creates it again at once; waits until the new one takes records.
    fn recreate(&self) {
        self.kafka.delete_topic(&self.topic);
        self.kafka.create_topic(&self.topic, 1, &[]);
    }

    fn client(&self, group: &str) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", self.kafka.bootstrap_servers())
            .set("group.id", group)
            .create()
            .unwrap()
    }

    /// What a group has committed.
    fn committed(&self, group: &str) -> (i64, String) {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, 0);
        let answer = self
            .client(group)
            .committed_offsets(list, PATIENCE)
            .unwrap();
        let element = answer.find_partition(&self.topic, 0).unwrap();
        let Offset::Offset(offset) = element.offset() else {
            panic!("{:?}", element.offset());
        };
        (offset, element.metadata().to_owned())
    }

    /// Commits for a group that nobody is a member of: as the last commit of a worker that did not
    /// notice, or as an operator's tool does.
    fn commit(&self, group: &str, offset: i64, metadata: &str) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, Offset::Offset(offset))
            .unwrap();
        list.find_partition(&self.topic, 0)
            .unwrap()
            .set_metadata(metadata);
        let client = self.client(group);
        let deadline = Instant::now() + PATIENCE;
        // The coordinator may be on its way to another broker.
        while let Err(error) = client.commit(&list, ClientCommit::Sync) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Reads and commits everything there is, and leaves the group.
    fn read_and_leave(&self, count: usize) {
        let mut reader = Reader::start(&self.settings());
        reader.read_all(count);
        reader.commit(CommitMode::Wait).unwrap();
    }
}

fn start_for_store(
    settings: &KafkaSettings,
    stored: CountStoredBeyond,
) -> Result<KafkaSource, SourceError> {
    KafkaSource::start_for_store(settings, stored, Metrics::new().unwrap())
}

fn failure(reader: &mut Reader) -> String {
    reader.run_to("a failure", |reader| reader.failure.is_some());
    match reader.failure.take() {
        Some(SourceError::Fatal(text)) => text,
        other => panic!("not fatal: {other:?}"),
    }
}

fn tells_what_to_do(text: &str) {
    for part in ["recreated", "store.collection", "kafka.group_id"] {
        assert!(text.contains(part), "{text}");
    }
}

/// Twenty records of the first topic were read; the group's commit survives it. Today's records at
/// 0 to 19 must not be skipped.
#[test]
fn offsets_of_another_topic_of_the_same_name_are_not_resumed() {
    let Some(kafka) = apache_kafka::shared("offsets_of_another_topic_of_the_same_name") else {
        return;
    };
    let ground = Ground::new(kafka);
    let group = ground.settings().group_id;
    ground.produce(&records(0..20, 1));
    ground.read_and_leave(20);
    let (next, metadata) = ground.committed(&group);
    assert_eq!(next, 20);
    assert!(metadata.contains("\"last\":{\"offset\":19,"), "{metadata}");

    ground.recreate();
    ground.produce(&records(100..130, 1));
    ground.commit(&group, next, &metadata);
    let text = failure_of(&ground.settings());
    tells_what_to_do(&text);
    assert!(text.contains("offset 19"), "{text}");
    let accepting = KafkaSettings {
        accept_gap: true,
        ..ground.settings()
    };
    tells_what_to_do(&failure_of(&accepting));

    // The commit of an older version, or an operator's: nothing is proved.
    ground.commit(&group, next, "");
    let mut reader = Reader::start(&ground.settings());
    reader.read_all(10);
    assert_eq!(reader.unique_keys(), keys(120..130));
}

/// An identical topic apart from its last record: where only an earlier one is compared, too.
#[test]
fn a_log_that_was_replaced_before_the_last_commit_is_found_by_the_record_before() {
    let Some(kafka) = apache_kafka::shared("a_log_that_was_replaced_before_the_last_commit") else {
        return;
    };
    let ground = Ground::new(kafka);
    let group = ground.settings().group_id;
    ground.produce(&records(0..20, 1));
    ground.read_and_leave(20);
    ground.produce(&records(20..25, 1));
    ground.read_and_leave(5);
    let (next, metadata) = ground.committed(&group);
    assert_eq!(next, 25);
    assert!(
        metadata.contains("\"verified\":{\"offset\":19,"),
        "{metadata}"
    );
    // What a worker commits that reads on in the new log without noticing: the record before is
    // still one of the old log.
    ground.recreate();
    ground.produce(&records(100..130, 1));
    let last = metadata.find(",\"verified\"").unwrap();
    let unnoticed = format!("{{{}", &metadata[last + 1..]);
    ground.commit(&group, next, &unnoticed);
    let text = failure_of(&ground.settings());
    assert!(text.contains("offset 19"), "{text}");
}

#[test]
fn a_topic_that_is_recreated_at_once_stops_the_worker_that_reads_it() {
    let Some(kafka) = apache_kafka::shared("a_topic_that_is_recreated_at_once") else {
        return;
    };
    for more in [10, 40] {
        let ground = Ground::new(kafka);
        ground.produce(&records(0..20, 1));
        let mut reader = Reader::start(&ground.settings());
        reader.read_all(20);
        reader.commit(CommitMode::Wait).unwrap();
        ground.recreate();
        ground.produce(&records(100..100 + more, 1));
        tells_what_to_do(&failure(&mut reader));
    }
}

/// The worker has seen the topic go; what is stored would win over the new one's records.
#[test]
fn a_topic_that_comes_back_under_a_running_worker_is_asked_of_the_store() {
    let Some(kafka) = apache_kafka::shared("a_topic_that_comes_back") else {
        return;
    };
    let ground = Ground::new(kafka);
    kafka.delete_topic(&ground.topic);
    std::thread::sleep(Duration::from_secs(1));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let stored: CountStoredBeyond = Arc::new({
        let asked = Arc::clone(&asked);
        // The store holds a document of each offset up to 19.
        move |ends: Vec<_>| {
            let ends: Vec<i64> = ends.into_iter().map(|end| end.offset).collect();
            let beyond = ends.iter().map(|end| u64::try_from(20 - end).unwrap_or(0));
            let count = beyond.sum();
            asked.lock().unwrap().extend(ends);
            Some(count)
        }
    });
    let settings = KafkaSettings {
        properties: Properties::from_pairs([("topic.metadata.refresh.interval.ms", "500")]),
        ..ground.settings()
    };
    let source = start_for_store(&settings, stored.clone()).unwrap();
    let mut reader = Reader::over(source);
    reader.run_for(Duration::from_secs(1));
    assert!(reader.failure.is_none(), "{:?}", reader.failure);
    kafka.create_topic(&ground.topic, 1, &[]);
    ground.produce(&records(0..4, 1));
    let text = failure(&mut reader);
    for part in ["deleted and created again", "store.collection", "documents"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(reader.keys.is_empty(), "nothing is delivered");
    drop(reader);

    // A topic that holds everything that the store knows is none of that.
    ground.produce(&records(4..20, 1));
    let source = start_for_store(&settings, stored).unwrap();
    let mut reader = Reader::over(source);
    reader.read_all(20);
    assert_eq!(asked.lock().unwrap().last(), Some(&20));
    // Committed partitions are not asked about.
    reader.commit(CommitMode::Wait).unwrap();
    drop(reader);
    let before = asked.lock().unwrap().len();
    let never: CountStoredBeyond = Arc::new(|_| panic!("nothing is new here"));
    let mut reader = Reader::over(start_for_store(&settings, never).unwrap());
    ground.produce(&records(20..21, 1));
    reader.read_all(1);
    assert_eq!(asked.lock().unwrap().len(), before);
}

#[test]
fn a_record_that_expired_proves_nothing() {
    let Some(kafka) = apache_kafka::shared("a_record_that_expired_proves_nothing") else {
        return;
    };
    let ground = Ground::new(kafka);
    ground.produce(&records(0..20, 1));
    ground.read_and_leave(20);
    kafka.expire_before(&ground.topic, 0, 20);
    ground.produce(&records(20..25, 1));
    ground.read_and_leave(5);
}

#[test]
fn a_resumed_range_is_one_of_the_same_log() {
    let Some(kafka) = apache_kafka::shared("a_resumed_range_is_one_of_the_same_log") else {
        return;
    };
    let ground = Ground::new(kafka);
    let job = RangeJob {
        name: "identity".to_owned(),
        range: RangeSpec::parse_offsets("0:0..100").unwrap(),
        fingerprint: "f".to_owned(),
        once: false,
        later_deletions: true,
    };
    let settings = KafkaSettings {
        queue_records: 8,
        ..ground.settings()
    };
    let group = job.group_id(&settings);
    ground.produce(&records(0..100, 1));
    let mut reader = Reader::start_range(&settings, &job);
    reader.run_to("a part", |reader| reader.keys.len() >= 20);
    reader.commit(CommitMode::Wait).unwrap();
    drop(reader);
    let (next, metadata) = ground.committed(&group);
    for part in ["\"run\":", "\"end\":100", "\"last\":{\"offset\":"] {
        assert!(metadata.contains(part), "{metadata}");
    }
    ground.recreate();
    ground.produce(&records(200..300, 1));
    ground.commit(&group, next, &metadata);
    let mut reader = Reader::start_range(&settings, &job);
    tells_what_to_do(&failure(&mut reader));
    assert!(reader.keys.is_empty());
    drop(reader);

    // As an older version wrote it: the note holds, and nothing is proved.
    let end = metadata.find(",\"last\"").unwrap();
    ground.commit(&group, next, &format!("{}}}", &metadata[..end]));
    let mut reader = Reader::start_range(&settings, &job);
    reader.run_to_the_end();
    let left = 100 - usize::try_from(next).unwrap();
    assert_eq!(reader.keys.len(), left);
}

/// Records that were fetched before the gap stay in flight, are written and committed; what comes
/// behind the gap follows.
#[test]
fn an_accepted_gap_in_a_running_range_leads_forward_and_drops_nothing() {
    let Some(kafka) = apache_kafka::shared("an_accepted_gap_in_a_running_range") else {
        return;
    };
    let ground = Ground::new(kafka);
    let big: Vec<SampleRecord> = (0..500)
        .map(|n| SampleRecord::new(&format!("doc-{n}"), vec![b'x'; 5_000]).to_partition(0))
        .collect();
    for chunk in big.chunks(10) {
        ground.produce(chunk);
    }
    let job = RangeJob {
        name: "gap".to_owned(),
        range: RangeSpec::parse_offsets("0:0..500").unwrap(),
        fingerprint: "f".to_owned(),
        once: false,
        later_deletions: true,
    };
    let settings = KafkaSettings {
        queue_records: 8,
        queue_bytes: 65_536,
        accept_gap: true,
        properties: Properties::from_pairs([
            ("queued.max.messages.kbytes", "1"),
            ("fetch.message.max.bytes", "10000"),
            ("queued.min.messages", "1"),
        ]),
        ..ground.settings()
    };
    let mut reader = Reader::start_range(&settings, &job);
    reader.acknowledges = false;
    reader.run_to("a part", |reader| reader.keys.len() >= 50);
    reader.watch("a pause", |counters| counters.pauses > 0);
    kafka.expire_before(&ground.topic, 0, 400);
    reader.run_to("the first record behind the gap", |reader| {
        reader.keys.last().is_some_and(|key| key == "doc-499")
    });
    // Everything that was in flight when the gap came is done only now.
    let receipts: Vec<_> = reader
        .records
        .iter()
        .map(|record| record.receipt())
        .collect();
    reader.watermarks.acknowledge(&receipts);
    assert_eq!(reader.watermarks.in_flight(), 0, "the assignment goes on");
    reader.acknowledges = true;
    reader.run_to_the_end();

    let before = reader.keys.len() - 100;
    assert!((50..400).contains(&before), "{before}");
    let mut expected = keys(0..before);
    expected.extend(keys(400..500));
    assert_eq!(reader.unique_keys(), expected);
    assert_eq!(reader.keys.len(), before + 100, "nothing twice");
    assert_eq!(reader.source.counters().records, (before + 100) as u64);
    let progress = reader.source.range_progress().unwrap();
    assert_eq!((progress.done(), progress.total()), (500, 500));
}

/// Replica 2 misses records 100 to 119, which were read from replica 1, and becomes the leader once
/// replica 1 is gone. Its own records 100 to 139 must not be skipped.
#[test]
fn a_log_that_an_unclean_election_cut_off_is_not_read_on() {
    let Some(kafka) = apache_kafka::own(
        "a_log_that_an_unclean_election_cut_off",
        3,
        &[
            ("unclean.leader.election.enable", "true"),
            ("broker.session.timeout.ms", "3000"),
            ("broker.heartbeat.interval.ms", "500"),
            ("replica.lag.time.max.ms", "3000"),
        ],
    ) else {
        return;
    };
    let ground = Ground {
        kafka: &kafka,
        topic: unique("log"),
    };
    kafka.create_topic_on(&ground.topic, &[1, 2]);
    ground.produce(&records(0..100, 1));
    let settings = KafkaSettings {
        properties: Properties::from_pairs([("topic.metadata.refresh.interval.ms", "1000")]),
        ..ground.settings()
    };
    let mut reader = Reader::start(&settings);
    reader.read_all(100);
    reader.commit(CommitMode::Wait).unwrap();

    kafka.kill_broker(2);
    ground.produce(&records(100..120, 1));
    reader.read_all(120);
    reader.run_to("a commit", |reader| {
        let offsets = reader.watermarks.committable();
        reader.source.commit(&offsets, CommitMode::Wait).is_ok()
    });
    let group = settings.group_id.clone();
    let (next, metadata) = ground.committed(&group);
    assert_eq!(next, 120);
    kafka.kill_broker(1);
    kafka.start_broker(2);
    ground.produce(&records(200..240, 1));
    tells_what_to_do(&failure(&mut reader));
    assert!(
        reader.unique_keys().is_subset(&keys(0..120)),
        "nothing behind the cut is read"
    );
    drop(reader);
    // Nor is it after a restart. The election may have cut off the group's own log as well, whose
    // commits are not what is tested here.
    ground.commit(&group, next, &metadata);
    tells_what_to_do(&failure_of(&settings));
}

#[test]
fn metadata_that_the_broker_finds_too_long_holds_up_no_commit() {
    let Some(kafka) = apache_kafka::own(
        "metadata_that_the_broker_finds_too_long",
        1,
        &[("offset.metadata.max.bytes", "64")],
    ) else {
        return;
    };
    let ground = Ground::new(&kafka);
    ground.produce(&records(0..20, 1));
    ground.read_and_leave(20);
    let committed = ground.committed(&ground.settings().group_id);
    assert_eq!(committed, (20, String::new()));
    ground.produce(&records(20..25, 1));
    ground.read_and_leave(5);
}

/// The offsets behind the last record are those of markers and of records that were taken back.
#[test]
fn records_that_were_taken_back_are_no_other_log() {
    let Some(kafka) = apache_kafka::shared("records_that_were_taken_back") else {
        return;
    };
    let topic = apache_kafka::unique("transactions");
    kafka.create_topic(&topic, 1, &[]);
    let transactions = Transactions::begin(kafka.bootstrap_servers(), &topic);
    let settings = KafkaSettings {
        topic: topic.clone(),
        group_id: format!("{topic}-readers"),
        brokers: kafka.bootstrap_servers().to_owned(),
        session_timeout_ms: 6_000,
        commit_interval_ms: 100,
        ..KafkaSettings::default()
    };
    let mut next = 0;
    for round in 0..3 {
        transactions.send(next..next + 5, true);
        transactions.send(900..905, false);
        let mut reader = Reader::start(&settings);
        reader.read_all(5);
        reader.commit(CommitMode::Wait).unwrap();
        assert_eq!(reader.unique_keys(), keys(next..next + 5), "{round}");
        next += 5;
        if round == 1 {
            // The record that the commit names is gone.
            kafka.expire_before(&topic, 0, 17);
        }
    }
}
