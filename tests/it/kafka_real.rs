//! The Kafka source and the dead letters against Apache Kafka itself: what the mock cluster does
//! not do as Kafka does, or not at all.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tcbert_worker::document::{Generation, RecordPosition, TopicPartition};
use tcbert_worker::kafka::{
    DeadLetterFilter, DeadLetterProducer, DeadLetterSettings, KafkaSettings, Properties,
    SampleProducer, SampleRecord, list_dead_letters,
};
use tcbert_worker::source::{
    CommitMode, DeadLetter, DeadLetterSink, Source, SourceEvent, SourceRecord,
};

use crate::apache_kafka::{self, ApacheKafka, unique};
use crate::kafka_reader::{PATIENCE, Reader, failure_of, keys, records};

/// A topic of this test's own with a group to read it.
struct Ground<'a> {
    kafka: &'a ApacheKafka,
    topic: String,
    producer: SampleProducer,
}

impl<'a> Ground<'a> {
    fn new(kafka: &'a ApacheKafka, partitions: i32) -> Self {
        let ground = Self::without_topic(kafka);
        kafka.create_topic(&ground.topic, partitions, &[]);
        ground
    }

    fn without_topic(kafka: &'a ApacheKafka) -> Self {
        Self {
            kafka,
            topic: unique("news"),
            producer: SampleProducer::new(kafka.bootstrap_servers()).unwrap(),
        }
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

    fn produce(&self, records: &[SampleRecord]) {
        self.producer.produce(&self.topic, records).unwrap();
    }
}

fn hand_over(kafka: &ApacheKafka, strategy: &str) {
    let ground = Ground::new(kafka, 4);
    let mut settings = ground.settings();
    settings.properties = Properties::from_pairs([("partition.assignment.strategy", strategy)]);
    ground.produce(&records(0..400, 4));
    let mut first = Reader::start(&settings);
    first.read_all(400);
    let handle = std::thread::spawn(move || {
        let mut second = Reader::start(&settings);
        second.run_to("half of the partitions", |reader| reader.partitions() == 2);
        second
    });
    while !handle.is_finished() {
        first.run_for(Duration::from_millis(20));
    }
    let mut second = handle.join().unwrap();
    assert_eq!(first.source.counters().commit_failures, 0);
    ground.produce(&records(400..800, 4));
    first.run_to("its half", |reader| reader.keys.len() >= 600);
    second.read_all(200);
    second.run_for(Duration::from_millis(300));
    assert_eq!(second.keys.len(), 200, "what was drained is not repeated");
    let mut all = first.unique_keys();
    all.extend(second.unique_keys());
    assert_eq!(all, keys(0..800));
    assert_eq!((first.lost, second.lost), (0, 0));

    // The second leaves without a word of its own; the first goes on where it stopped.
    second.commit(CommitMode::Wait).unwrap();
    drop(second);
    first.run_to("all partitions", |reader| reader.partitions() == 4);
    ground.produce(&records(800..900, 4));
    first.read_all(700);
    first.run_for(Duration::from_millis(300));
    assert_eq!(first.keys.len(), 700);
}

#[test]
fn partitions_change_hands_drained_and_committed() {
    let Some(kafka) = apache_kafka::shared("partitions_change_hands_drained_and_committed") else {
        return;
    };
    hand_over(kafka, "cooperative-sticky");
    hand_over(kafka, "range");
}

#[test]
fn members_that_come_and_go_lose_nothing() {
    const RECORDS: usize = 20_000;
    let Some(kafka) = apache_kafka::shared("members_that_come_and_go_lose_nothing") else {
        return;
    };
    let ground = Ground::new(kafka, 12);
    let settings = ground.settings();
    ground.produce(&records(0..RECORDS, 12));
    let mut seen = BTreeSet::new();
    let mut first = Reader::start(&settings);
    let mut others: Vec<Reader> = Vec::new();
    for round in 0..6 {
        if round % 2 == 0 {
            others.push(Reader::start(&settings));
        } else if let Some(mut left) = others.pop() {
            // Gone without a commit: what it did since the last one is repeated.
            left.run_for(Duration::from_millis(100));
            seen.extend(left.unique_keys());
        }
        let until = Instant::now() + Duration::from_millis(700);
        while Instant::now() < until {
            first.run_for(Duration::from_millis(5));
            first.commit(CommitMode::Background).unwrap();
            for other in &mut others {
                other.run_for(Duration::from_millis(5));
                other.commit(CommitMode::Background).unwrap();
            }
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while seen.len() < RECORDS {
        assert!(Instant::now() < deadline, "{} of {RECORDS}", seen.len());
        first.run_for(Duration::from_millis(20));
        seen.extend(first.unique_keys());
        for other in &mut others {
            other.run_for(Duration::from_millis(20));
            seen.extend(other.unique_keys());
        }
    }
    assert_eq!(seen, keys(0..RECORDS));
}

#[test]
fn an_expired_offset_is_refused_until_the_gap_is_accepted() {
    let Some(kafka) = apache_kafka::shared("an_expired_offset") else {
        return;
    };
    let ground = Ground::new(kafka, 1);
    ground.produce(&records(0..100, 1));
    let mut first = Reader::start(&ground.settings());
    first.read_all(100);
    let mut offsets = first.watermarks.committable();
    offsets[0].next_offset = 10;
    first.source.commit(&offsets, CommitMode::Wait).unwrap();
    drop(first);
    kafka.expire_before(&ground.topic, 0, 60);

    let text = failure_of(&ground.settings());
    assert!(
        text.contains("50 records are gone") && text.contains("--accept-gap"),
        "{text}"
    );
    let mut accepting = Reader::start(&KafkaSettings {
        accept_gap: true,
        ..ground.settings()
    });
    accepting.read_all(40);
    assert_eq!(accepting.unique_keys(), keys(60..100));
}

#[test]
fn records_that_expire_while_the_worker_is_behind_are_refused_too() {
    let Some(kafka) = apache_kafka::shared("records_that_expire_while_running") else {
        return;
    };
    for accept_gap in [false, true] {
        let ground = Ground::new(kafka, 1);
        let mut reader = Reader::start(&KafkaSettings {
            queue_records: 8,
            queue_bytes: 65_536,
            accept_gap,
            properties: Properties::from_pairs([
                ("queued.max.messages.kbytes", "1"),
                ("fetch.message.max.bytes", "10000"),
                ("queued.min.messages", "1"),
            ]),
            ..ground.settings()
        });
        reader.run_to("the assignment", |reader| reader.partitions() == 1);
        let big: Vec<SampleRecord> = (0..500)
            .map(|n| SampleRecord::new(&format!("doc-{n}"), vec![b'x'; 5_000]).to_partition(0))
            .collect();
        for chunk in big.chunks(10) {
            ground.produce(chunk);
        }
        while reader.source.counters().pauses == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        kafka.expire_before(&ground.topic, 0, 400);
        if accept_gap {
            reader.run_to("the last", |reader| {
                reader.keys.last().is_some_and(|key| key == "doc-499")
            });
            assert!(reader.keys.len() < 400, "{}", reader.keys.len());
        } else {
            reader.run_to("a failure", |reader| reader.failure.is_some());
            let text = reader.failure.unwrap().to_string();
            assert!(text.contains("records are gone"), "{text}");
        }
    }
}

/// Kafka forgets a group's offsets with the topic: what the new one holds is read from its beginning.
#[test]
fn a_topic_that_was_recreated_is_read_from_its_beginning() {
    let Some(kafka) = apache_kafka::shared("a_topic_that_was_recreated") else {
        return;
    };
    let ground = Ground::new(kafka, 1);
    ground.produce(&records(0..100, 1));
    let mut first = Reader::start(&ground.settings());
    first.read_all(100);
    first.commit(CommitMode::Wait).unwrap();
    drop(first);
    kafka.delete_topic(&ground.topic);
    std::thread::sleep(Duration::from_millis(500));
    kafka.create_topic(&ground.topic, 1, &[]);
    let again = SampleProducer::new(kafka.bootstrap_servers()).unwrap();
    again.produce(&ground.topic, &records(100..105, 1)).unwrap();
    let mut next = Reader::start(&ground.settings());
    next.read_all(5);
    assert_eq!(next.unique_keys(), keys(100..105));
}

#[test]
fn a_topic_that_does_not_exist_yet_is_waited_for() {
    let Some(kafka) = apache_kafka::shared("a_topic_that_does_not_exist_yet_is_waited_for") else {
        return;
    };
    let ground = Ground::without_topic(kafka);
    let mut reader = Reader::start(&KafkaSettings {
        properties: Properties::from_pairs([("topic.metadata.refresh.interval.ms", "500")]),
        ..ground.settings()
    });
    reader.run_for(Duration::from_millis(1_500));
    assert!(reader.failure.is_none(), "{:?}", reader.failure);
    kafka.create_topic(&ground.topic, 2, &[]);
    ground.produce(&records(0..10, 2));
    reader.read_all(10);
}

/// Aborted records are never delivered, and the markers between records hold nothing up.
#[test]
fn gaps_of_transactions_hold_nothing_up() {
    let Some(kafka) = apache_kafka::shared("gaps_of_transactions_hold_nothing_up") else {
        return;
    };
    let ground = Ground::new(kafka, 1);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap_servers())
        .set("transactional.id", unique("transaction"))
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    for round in 0..10 {
        producer.begin_transaction().unwrap();
        for n in 0..10 {
            let key = format!("doc-{}", round * 10 + n);
            let record = BaseRecord::to(&ground.topic)
                .key(&key)
                .payload("x")
                .partition(0);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        if round % 2 == 0 {
            producer.commit_transaction(PATIENCE).unwrap();
        } else {
            producer.flush(PATIENCE).unwrap();
            producer.abort_transaction(PATIENCE).unwrap();
        }
    }
    let mut reader = Reader::start(&ground.settings());
    reader.read_all(50);
    reader.run_for(Duration::from_millis(300));
    assert_eq!(reader.keys.len(), 50);
    let offsets = reader.commit(CommitMode::Wait).unwrap();
    let last = reader.records.last().unwrap().position.offset;
    assert_eq!(offsets[0].next_offset, last + 1);
    drop(reader);
    let mut next = Reader::start(&ground.settings());
    next.run_for(Duration::from_millis(1_500));
    assert_eq!((next.keys.len(), next.failure.is_none()), (0, true));
}

#[test]
fn a_static_member_comes_back_without_a_rebalance() {
    let Some(kafka) = apache_kafka::shared("a_static_member_comes_back_without_a_rebalance") else {
        return;
    };
    let ground = Ground::new(kafka, 4);
    let member = |name: &str| KafkaSettings {
        group_instance_id: Some(name.to_owned()),
        session_timeout_ms: 30_000,
        ..ground.settings()
    };
    let mut first = Reader::start(&member("one"));
    first.run_to("all partitions", |reader| reader.partitions() == 4);
    let two = member("two");
    let handle = {
        let two = two.clone();
        std::thread::spawn(move || {
            let mut second = Reader::start(&two);
            second.run_to("half", |reader| reader.partitions() == 2);
        })
    };
    while !handle.is_finished() {
        first.run_for(Duration::from_millis(20));
    }
    handle.join().unwrap();
    let revoked = first.revoked;
    let mut second = Reader::start(&two);
    second.run_to("its half again", |reader| reader.partitions() == 2);
    first.run_for(Duration::from_millis(500));
    assert_eq!((first.revoked, first.partitions()), (revoked, 2));
}

#[test]
fn a_frozen_pipeline_stays_a_member_and_a_killed_one_is_replaced() {
    let Some(kafka) = apache_kafka::shared("a_killed_member_is_replaced") else {
        return;
    };
    let ground = Ground::new(kafka, 2);
    ground.produce(&records(0..10, 2));
    let mut first = Reader::start(&ground.settings());
    first.read_all(10);
    // Beyond the session timeout without a single event taken.
    std::thread::sleep(Duration::from_secs(7));
    ground.produce(&records(10..20, 2));
    first.read_all(20);
    assert_eq!((first.revoked, first.lost), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_refuses_for_its_size_is_cut_and_spooled() {
    let Some(kafka) = apache_kafka::shared("what_kafka_refuses_for_its_size") else {
        return;
    };
    let dead = unique("dead");
    let (topic, servers) = (dead.clone(), kafka.bootstrap_servers().to_owned());
    tokio::task::spawn_blocking(move || {
        kafka.create_topic(&topic, 1, &[("max.message.bytes", "100000")]);
    })
    .await
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let settings = KafkaSettings {
        brokers: servers,
        dead_letter_topic: dead,
        ..KafkaSettings::default()
    };
    let spool = folder.path().join("spool");
    let dead_letter = DeadLetterSettings {
        spool_dir: spool.display().to_string(),
        // Compression would make the record small again.
        properties: Properties::from_pairs([("compression.type", "none")]),
        ..DeadLetterSettings::default()
    };
    let producer = DeadLetterProducer::start(&settings, &dead_letter).unwrap();
    let letter = |offset: i64, bytes: usize| DeadLetter {
        record: SourceRecord {
            position: RecordPosition {
                partition: TopicPartition::new("news", 0),
                offset,
            },
            generation: Generation(1),
            timestamp_ms: Some(1_700_000_000_000),
            key: Some(format!("doc-{offset}").into_bytes()),
            value: Some(vec![b'x'; bytes]),
            headers: Vec::new(),
        },
        stage: "decode".to_owned(),
        class: "too_large".to_owned(),
        message: "too large".to_owned(),
    };
    // Small ones beside the large one: none of them may be cut for its sake.
    let sends = (0..40).map(|n| producer.send(letter(n, if n == 20 { 300_000 } else { 3_000 })));
    for outcome in futures::future::join_all(sends).await {
        outcome.unwrap();
    }
    let letters = list_dead_letters(&settings, &DeadLetterFilter::default()).unwrap();
    assert_eq!(letters.len(), 40);
    let cut: Vec<_> = letters
        .iter()
        .filter(|letter| letter.cut.is_some())
        .collect();
    assert_eq!(cut.len(), 1);
    assert_eq!(cut[0].cut.as_ref().unwrap().value_bytes, 300_000);
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 1);
}

#[test]
fn a_broker_that_is_killed_and_comes_back_loses_nothing() {
    let Some(kafka) = apache_kafka::own("a_broker_that_is_killed", 1, &[]) else {
        return;
    };
    let ground = Ground::new(&kafka, 3);
    ground.produce(&records(0..300, 3));
    let mut reader = Reader::start(&ground.settings());
    reader.read_all(300);
    reader.commit(CommitMode::Background).unwrap();
    kafka.kill_broker(1);
    reader.run_for(Duration::from_secs(2));
    assert!(reader.failure.is_none(), "{:?}", reader.failure);
    kafka.start_broker(1);
    kafka.wait_until_up(1);
    ground.produce(&records(300..600, 3));
    reader.run_to("the rest", |reader| reader.unique_keys().len() == 600);
    assert_eq!(reader.unique_keys(), keys(0..600));
    reader.run_to("a commit", |reader| {
        let offsets = reader.watermarks.committable();
        reader.source.commit(&offsets, CommitMode::Wait).is_ok()
    });
    drop(reader);
    let mut next = Reader::start(&ground.settings());
    next.run_for(Duration::from_secs(2));
    assert_eq!(next.keys.len(), 0);
}

/// A process that dies holds its partitions until the session ends; they are worked on again soon
/// after. Dropping the events without answering or leaving is the nearest to it in one process.
#[test]
fn a_pipeline_that_never_answers_gives_its_partitions_up() {
    let Some(kafka) = apache_kafka::shared("a_pipeline_that_never_answers") else {
        return;
    };
    let ground = Ground::new(kafka, 2);
    ground.produce(&records(0..20, 2));
    let settings = KafkaSettings {
        revoke_drain_ms: 500,
        ..ground.settings()
    };
    let mut first = Reader::start(&settings);
    first.read_all(20);
    let handle = std::thread::spawn(move || {
        let mut second = Reader::start(&settings);
        second.run_to("its half, repeated", |reader| reader.keys.len() == 10);
    });
    let mut kept: Vec<SourceEvent> = Vec::new();
    while !handle.is_finished() {
        kept.extend(first.events.recv_timeout(Duration::from_millis(20)).ok());
    }
    handle.join().unwrap();
    assert!(
        kept.iter()
            .any(|event| matches!(event, SourceEvent::Revoked { .. }))
    );
}
