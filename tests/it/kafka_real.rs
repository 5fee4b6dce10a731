//! The Kafka source and the dead letters against Apache Kafka itself: what the mock cluster does
//! not do as Kafka does, or not at all.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tcbert_worker::document::{Generation, RecordPosition, TopicPartition};
use tcbert_worker::kafka::{
    DeadLetterFilter, DeadLetterProducer, DeadLetterSettings, KafkaSettings, Properties, RangeJob,
    RangeSpec, SampleProducer, SampleRecord, group_positions, list_dead_letters,
};
use tcbert_worker::source::{
    CommitMode, DeadLetter, DeadLetterSink, Source, SourceEvent, SourceRecord,
};

use crate::apache_kafka::{self, ApacheKafka, unique};
use crate::kafka_reader::{PATIENCE, Reader, Transactions, failure_of, keys, records};
use crate::proxy::Proxy;

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

/// Where nothing is left behind the gap, no record takes the commit past it.
#[test]
fn a_gap_at_the_end_is_accepted_once() {
    let Some(kafka) = apache_kafka::shared("a_gap_at_the_end_is_accepted_once") else {
        return;
    };
    let ground = Ground::new(kafka, 1);
    ground.produce(&records(0..50, 1));
    let mut first = Reader::start(&ground.settings());
    first.read_all(50);
    first.commit(CommitMode::Wait).unwrap();
    drop(first);
    ground.produce(&records(50..100, 1));
    kafka.expire_before(&ground.topic, 0, 100);
    let text = failure_of(&ground.settings());
    assert!(text.contains("50 records are gone"), "{text}");
    let accepting = KafkaSettings {
        accept_gap: true,
        ..ground.settings()
    };
    let mut reader = Reader::start(&accepting);
    reader.run_to("the commit behind the gap", |_| {
        let positions = group_positions(&accepting).unwrap();
        positions.iter().any(|one| one.committed == Some(100))
    });
    drop(reader);
    let mut reader = Reader::start(&ground.settings());
    ground.produce(&records(100..103, 1));
    reader.read_all(3);
    assert_eq!(reader.unique_keys(), keys(100..103));
}

#[test]
fn records_that_expire_while_the_worker_is_behind_are_refused_too() {
    let Some(kafka) = apache_kafka::shared("records_that_expire_while_running") else {
        return;
    };
    for (accept_gap, acknowledges) in [(false, true), (true, true), (true, false)] {
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
        reader.acknowledges = acknowledges;
        reader.run_to("the assignment", |reader| reader.partitions() == 1);
        let big: Vec<SampleRecord> = (0..500)
            .map(|n| SampleRecord::new(&format!("doc-{n}"), vec![b'x'; 5_000]).to_partition(0))
            .collect();
        for chunk in big.chunks(10) {
            ground.produce(chunk);
        }
        reader.watch("a pause", |counters| counters.pauses > 0);
        kafka.expire_before(&ground.topic, 0, 400);
        if accept_gap {
            reader.run_to("the last", |reader| {
                reader.keys.last().is_some_and(|key| key == "doc-499")
            });
            assert!(reader.keys.len() < 400, "{}", reader.keys.len());
            // What was in flight when the gap came is not durable since something behind it is gone.
            let lag = |reader: &Reader| reader.source.status().partitions[0].lag();
            let expected = if acknowledges { 0 } else { 500 };
            reader.commit(CommitMode::Background).unwrap();
            reader.run_to("the lag", |reader| lag(reader) == Some(expected));
            reader.run_for(Duration::from_secs(5));
            assert_eq!(lag(&reader), Some(expected));
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
        group_instance_id: name.to_owned(),
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
            fault: None,
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

fn job(name: &str, range: RangeSpec) -> RangeJob {
    RangeJob {
        name: name.to_owned(),
        range,
        fingerprint: "f".to_owned(),
        once: false,
        later_deletions: true,
    }
}

fn times(from_ms: Option<i64>, to_ms: Option<i64>) -> RangeSpec {
    RangeSpec::Times { from_ms, to_ms }
}

#[test]
fn a_range_ends_by_itself_while_producers_go_on() {
    let Some(kafka) = apache_kafka::shared("a_range_ends_by_itself") else {
        return;
    };
    let ground = Ground::new(kafka, 3);
    ground.produce(&records(0..300, 3));
    let whole = job("whole", times(None, None));
    let mut reader = Reader::start_range(&ground.settings(), &whole);
    // Produced after the job was agreed on: none of its business.
    ground.produce(&records(300..600, 3));
    reader.run_to_the_end();
    assert_eq!(reader.unique_keys(), keys(0..300));
    assert_eq!(reader.keys.len(), 300);
    let progress = reader.source.range_progress().unwrap();
    assert_eq!((progress.done(), progress.total()), (300, 300));
    drop(reader);

    // The live group knows nothing of it; a finished job begins anew, and now holds more.
    let mut live = Reader::start(&ground.settings());
    live.read_all(600);
    drop(live);
    let mut again = Reader::start_range(&ground.settings(), &whole);
    again.run_to_the_end();
    assert_eq!(again.keys.len(), 600);
}

#[test]
fn a_range_is_chosen_by_time_or_by_offset() {
    let Some(kafka) = apache_kafka::shared("a_range_is_chosen_by_time_or_by_offset") else {
        return;
    };
    let ground = Ground::without_topic(kafka);
    // Retention would take records of that time.
    kafka.create_topic(&ground.topic, 2, &[("retention.ms", "-1")]);
    let start_ms = 1_700_000_000_000;
    let timed: Vec<SampleRecord> = records(0..200, 2)
        .into_iter()
        .zip(start_ms..)
        .map(|(record, time)| record.at(time))
        .collect();
    ground.produce(&timed);
    let mut by_time = Reader::start_range(
        &ground.settings(),
        &job("time", times(Some(start_ms + 50), Some(start_ms + 120))),
    );
    by_time.run_to_the_end();
    assert_eq!(by_time.unique_keys(), keys(50..120));

    let by_offset = job("offset", RangeSpec::parse_offsets("1:10..20").unwrap());
    let mut by_offset = Reader::start_range(&ground.settings(), &by_offset);
    by_offset.run_to_the_end();
    assert_eq!(by_offset.keys.len(), 10);
    assert!(
        by_offset
            .records
            .iter()
            .all(|record| record.position.partition.partition == 1)
    );

    let later = job("later", times(Some(start_ms + 10_000), None));
    let mut nothing = Reader::start_range(&ground.settings(), &later);
    nothing.run_to_the_end();
    assert_eq!(nothing.keys.len(), 0);
}

#[test]
fn an_unfinished_range_goes_on_where_it_was() {
    let Some(kafka) = apache_kafka::shared("an_unfinished_range_goes_on_where_it_was") else {
        return;
    };
    let ground = Ground::new(kafka, 2);
    ground.produce(&records(0..2_000, 2));
    let whole = job("resumed", times(None, None));
    let small = KafkaSettings {
        queue_records: 80,
        ..ground.settings()
    };
    let mut first = Reader::start_range(&small, &whole);
    first.run_to("a part", |reader| reader.keys.len() >= 500);
    first.commit(CommitMode::Wait).unwrap();
    let done = first.keys.len();
    drop(first);
    ground.produce(&records(2_000..2_100, 2));
    let mut second = Reader::start_range(&small, &whole);
    assert_eq!(
        second.source.range_progress().unwrap().total(),
        2_000,
        "the ends stay as they were"
    );
    second.run_to_the_end();
    assert_eq!(second.keys.len(), 2_000 - done);
}

#[test]
fn workers_share_a_range_and_take_over_what_another_leaves() {
    let Some(kafka) = apache_kafka::shared("workers_share_a_range") else {
        return;
    };
    let ground = Ground::new(kafka, 4);
    ground.produce(&records(0..8_000, 4));
    let whole = job("shared", times(None, None));
    let small = KafkaSettings {
        queue_records: 80,
        ..ground.settings()
    };
    let mut first = Reader::start_range(&small, &whole);
    // Slow enough to leave something for the other.
    first.pace = Duration::from_millis(20);
    let mut second = Reader::start_range(&small, &whole);
    let deadline = Instant::now() + PATIENCE;
    while second.keys.len() < 500 {
        assert!(
            Instant::now() < deadline,
            "{} {}",
            first.keys.len(),
            second.keys.len()
        );
        first.run_for(Duration::from_millis(1));
        second.run_for(Duration::from_millis(10));
        second.commit(CommitMode::Background).unwrap();
    }
    let mut all = first.unique_keys();
    drop(first);
    second.run_to_the_end();
    all.extend(second.unique_keys());
    assert_eq!(all, keys(0..8_000));
    let progress = second.source.range_progress().unwrap();
    assert_eq!(progress.done(), progress.total());
}

/// What stands last below the end may be markers of transactions, which are never delivered.
#[test]
fn a_range_ends_behind_records_that_are_never_delivered() {
    let Some(kafka) = apache_kafka::shared("a_range_ends_behind_gaps") else {
        return;
    };
    let ground = Ground::new(kafka, 2);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap_servers())
        .set("transactional.id", unique("transaction"))
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    for (commits, key) in [(true, "doc-0"), (false, "doc-1")] {
        producer.begin_transaction().unwrap();
        for partition in 0..2 {
            let record = BaseRecord::to(&ground.topic)
                .key(key)
                .payload("x")
                .partition(partition);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        if commits {
            producer.commit_transaction(PATIENCE).unwrap();
        } else {
            producer.flush(PATIENCE).unwrap();
            producer.abort_transaction(PATIENCE).unwrap();
        }
    }
    let whole = job("gaps", times(None, None));
    let mut reader = Reader::start_range(&ground.settings(), &whole);
    reader.run_to_the_end();
    assert_eq!(reader.keys, ["doc-0", "doc-0"]);
    let progress = reader.source.range_progress().unwrap();
    assert_eq!((progress.done(), progress.total()), (8, 8));
}

/// A broker of this test's own that names a proxy as its address.
fn behind_a_proxy(test: &str) -> Option<(Proxy, ApacheKafka)> {
    let proxy = Proxy::reserve();
    let advertised = format!("CLIENT://{}", proxy.address());
    let properties = [("advertised.listeners", advertised.as_str())];
    let lead = |address: &str| proxy.forward_to(address);
    let kafka = apache_kafka::own_behind(test, &properties, lead)?;
    Some((proxy, kafka))
}

/// Only one that is damaged where it stands ends the worker.
#[test]
fn a_batch_that_is_damaged_on_its_way_is_read_again() {
    let Some((proxy, kafka)) = behind_a_proxy("a_batch_that_is_damaged_on_its_way_is_read_again")
    else {
        return;
    };
    let ground = Ground::new(&kafka, 3);
    ground.produce(&records(0..9, 3));
    // As often as the worker reads it again; what looks for the batch takes a share of them.
    proxy.damage(b"value 4", 3);
    let mut reader = Reader::start(&ground.settings());
    reader.read_all(9);
    assert_eq!(proxy.to_be_damaged(), 0);
    assert!(reader.failure.is_none(), "{:?}", reader.failure);
    assert_eq!(reader.unique_keys(), keys(0..9));
    reader.commit(CommitMode::Wait).unwrap();
    reader.run_to("a readiness that names none", |reader| {
        reader.source.status().damaged.is_none()
    });
}

/// A check of all partitions makes nothing durable: the end behind records in flight is not committed.
#[test]
fn what_is_in_flight_is_not_passed_when_all_partitions_are_checked() {
    let test = "what_is_in_flight_is_not_passed_when_all_partitions_are_checked";
    let Some((proxy, kafka)) = behind_a_proxy(test) else {
        return;
    };
    let ground = Ground::new(&kafka, 1);
    let marked = unique("marked");
    kafka.create_topic(&marked, 1, &[]);
    // Five records and their marker.
    Transactions::begin(kafka.bootstrap_servers(), &marked).send(0..5, true);
    let settings = KafkaSettings {
        topic: format!("{},{marked}", ground.topic),
        ..ground.settings()
    };
    let mut reader = Reader::start(&settings);
    reader.acknowledges = false;
    reader.read_all(5);
    proxy.damage(b"value 9", 1);
    ground.produce(&[SampleRecord::new("doc-9", "value 9")]);
    reader.read_all(6);
    assert_eq!(proxy.to_be_damaged(), 0);
    // Longer than a gap is waited for.
    reader.run_for(Duration::from_secs(30));
    let status = reader.source.status();
    let of_marked = |topic: &str| topic == marked;
    let mut partitions = status.partitions.iter();
    let found = partitions.find(|one| of_marked(&one.partition.topic));
    let positions = group_positions(&settings).unwrap();
    let mut positions = positions.iter();
    let position = positions.find(|one| of_marked(&one.partition.topic));
    let committed = position.and_then(|one| one.committed);
    assert_eq!((found.unwrap().lag(), committed), (Some(6), None));
}
