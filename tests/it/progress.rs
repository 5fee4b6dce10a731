//! What a source says of its partitions: lag, brokers, topics; and the ends that it commits.

use std::time::Duration;

use tcbert_worker::kafka::{
    EmbeddedBroker, KafkaSettings, KafkaSource, SampleProducer, SourceStatus,
};
use tcbert_worker::source::CommitMode;
use tcbert_worker::telemetry::Metrics;

use crate::apache_kafka;
use crate::kafka_reader::{Reader, Transactions, keys, records};

const TOPIC: &str = "news";
/// In which a source looks at its partitions more than once.
const LOOKS: Duration = Duration::from_secs(5);

fn settings(brokers: &str, topic: &str) -> KafkaSettings {
    KafkaSettings {
        brokers: brokers.to_owned(),
        topic: topic.to_owned(),
        group_id: format!("{topic}-readers"),
        session_timeout_ms: 6_000,
        commit_interval_ms: 100,
        ..KafkaSettings::default()
    }
}

fn lags(status: &SourceStatus) -> Vec<Option<u64>> {
    let mut partitions = status.partitions.clone();
    partitions.sort_by(|one, other| one.partition.cmp(&other.partition));
    partitions.iter().map(|partition| partition.lag()).collect()
}

fn status_to(reader: &mut Reader, what: &str, done: impl Fn(&SourceStatus) -> bool) {
    reader.run_to(what, |reader| done(&reader.source.status()));
}

#[test]
fn lag_is_what_is_not_durable_and_goes_with_its_partition() {
    let broker = EmbeddedBroker::start(&[(TOPIC, 2)]).unwrap();
    let producer = SampleProducer::new(&broker.bootstrap_servers()).unwrap();
    let settings = settings(&broker.bootstrap_servers(), TOPIC);
    producer.produce(TOPIC, &records(0..20, 2)).unwrap();
    let mut first = Reader::start(&settings);
    first.acknowledges = false;
    first.read_all(20);
    status_to(&mut first, "what is in flight", |status| {
        lags(status) == [Some(10), Some(10)]
    });
    producer.produce(TOPIC, &records(20..30, 2)).unwrap();
    let waits = |status: &SourceStatus| -> Vec<_> {
        let partitions = status.partitions.iter();
        partitions.map(|one| one.waiting_since).collect()
    };
    let since = waits(&first.source.status());
    assert!(since.iter().all(Option::is_some), "{since:?}");
    status_to(&mut first, "what came since", |status| {
        lags(status) == [Some(15), Some(15)]
    });
    first.run_for(LOOKS);
    assert_eq!(waits(&first.source.status()), since);
    first.run_to("all", |reader| reader.keys.len() == 30);
    let receipts: Vec<_> = first
        .records
        .iter()
        .map(|record| record.receipt())
        .collect();
    first.watermarks.acknowledge(&receipts);
    first.commit(CommitMode::Wait).unwrap();
    status_to(&mut first, "no lag", |status| {
        lags(status) == [Some(0), Some(0)] && waits(status) == [None, None]
    });
    // A second member takes one of them.
    let mut second = Reader::start(&settings);
    let both = |one: &Reader, other: &Reader| (one.partitions(), other.partitions());
    for _ in 0..600 {
        first.run_for(Duration::from_millis(50));
        second.run_for(Duration::from_millis(50));
        if both(&first, &second) == (1, 1) && first.source.status().partitions.len() == 1 {
            break;
        }
    }
    assert_eq!(both(&first, &second), (1, 1));
    assert_eq!(lags(&first.source.status()).len(), 1);
}

#[test]
fn brokers_that_are_away_are_told_and_the_last_lag_stays() {
    let broker = EmbeddedBroker::start(&[(TOPIC, 1)]).unwrap();
    let producer = SampleProducer::new(&broker.bootstrap_servers()).unwrap();
    let settings = settings(&broker.bootstrap_servers(), TOPIC);
    producer.produce(TOPIC, &records(0..7, 1)).unwrap();
    let mut reader = Reader::start(&settings);
    reader.acknowledges = false;
    reader.read_all(7);
    status_to(&mut reader, "the lag", |status| lags(status) == [Some(7)]);
    assert_eq!(reader.source.status().unreachable, None);
    broker.broker_down(-1).unwrap();
    status_to(&mut reader, "brokers that are away", |status| {
        status.unreachable.is_some()
    });
    still_away_after_the_session(&mut reader, |status| {
        assert_eq!(lags(status), [Some(7)]);
    });
    broker.broker_up(-1).unwrap();
    status_to(&mut reader, "brokers that are back", |status| {
        status.unreachable.is_none() && lags(status) == [Some(7)]
    });
}

#[test]
fn a_leader_that_is_away_is_told_and_the_others_lag_goes_on() {
    let broker = EmbeddedBroker::start_cluster(2).unwrap();
    broker.create_topic(TOPIC, 2).unwrap();
    broker.move_leader(TOPIC, 0, 1).unwrap();
    broker.move_leader(TOPIC, 1, 2).unwrap();
    let producer = SampleProducer::new(&broker.bootstrap_servers()).unwrap();
    let settings = KafkaSettings {
        session_timeout_ms: 45_000,
        ..settings(&broker.bootstrap_servers(), TOPIC)
    };
    producer.produce(TOPIC, &records(0..20, 2)).unwrap();
    let mut reader = Reader::start(&settings);
    reader.acknowledges = false;
    reader.read_all(20);
    status_to(&mut reader, "the lag", |status| {
        lags(status) == [Some(10), Some(10)]
    });
    broker.broker_down(2).unwrap();
    let more: Vec<_> = records(20..40, 2).into_iter().step_by(2).collect();
    producer.produce(TOPIC, &more).unwrap();
    status_to(&mut reader, "the leader that is away", |status| {
        let away = status.unreachable.as_ref();
        let mut lags = lags(status);
        lags.sort_unstable();
        away.is_some_and(|(_, reason)| reason.contains(&format!("the leader of {TOPIC}[1]")))
            && lags == [Some(10), Some(20)]
    });
    broker.broker_up(2).unwrap();
    status_to(&mut reader, "the leader that is back", |status| {
        status.unreachable.is_none()
    });
}

/// Twice the session's length, so that the partitions are lost meanwhile. Readiness waits for half a minute, all
/// of which counts from the same moment.
fn still_away_after_the_session(reader: &mut Reader, look: impl Fn(&SourceStatus)) {
    let since = |status: &SourceStatus| status.unreachable.as_ref().map(|(since, _)| *since);
    let first = since(&reader.source.status());
    assert!(first.is_some());
    for _ in 0..120 {
        reader.run_for(Duration::from_millis(100));
        let status = reader.source.status();
        assert_eq!(since(&status), first, "{status:?}");
        look(&status);
    }
}

#[test]
fn brokers_that_are_away_are_told_by_a_worker_without_partitions() {
    let broker = EmbeddedBroker::start(&[(TOPIC, 1)]).unwrap();
    let settings = settings(&broker.bootstrap_servers(), TOPIC);
    let mut first = Reader::start(&settings);
    first.run_to("its partition", |reader| reader.partitions() == 1);
    let mut surplus = Reader::start(&settings);
    for _ in 0..40 {
        first.run_for(Duration::from_millis(50));
        surplus.run_for(Duration::from_millis(50));
    }
    let mut surplus = if surplus.partitions() == 0 {
        surplus
    } else {
        first
    };
    broker.broker_down(-1).unwrap();
    status_to(&mut surplus, "brokers that are away", |status| {
        status.unreachable.is_some()
    });
    still_away_after_the_session(&mut surplus, |_| {});
}

#[test]
fn a_topic_that_does_not_exist_is_told() {
    let Some(kafka) = apache_kafka::shared("a_topic_that_does_not_exist_is_told") else {
        return;
    };
    let topic = apache_kafka::unique("nwes");
    let mut reader = Reader::start(&settings(kafka.bootstrap_servers(), &topic));
    status_to(&mut reader, "the missing topic", |status| {
        let missing = status.missing.as_ref();
        missing.is_some_and(|(_, topics)| *topics == [topic.clone()])
    });
    // Readiness waits for half a minute, which counts from this moment.
    let first = reader.source.status().missing;
    reader.run_for(LOOKS);
    assert_eq!(reader.source.status().missing, first);
    kafka.create_topic(&topic, 1, &[]);
    status_to(&mut reader, "the topic", |status| status.missing.is_none());
}

/// Offsets that hold markers and records that were taken back are nobody's: they are no lag, and they may
/// expire.
#[test]
fn an_idle_topic_with_transactions_has_no_lag_and_no_gap_when_its_markers_expire() {
    let Some(kafka) = apache_kafka::shared("an_idle_topic_with_transactions") else {
        return;
    };
    let topic = apache_kafka::unique("transactions");
    kafka.create_topic(&topic, 1, &[]);
    let transactions = Transactions::begin(kafka.bootstrap_servers(), &topic);
    // As in a cluster most of whose brokers are away: a client tries them one after the other.
    let away = (1..9).map(|port| format!("127.0.0.1:{port},"));
    let brokers = away.collect::<String>() + kafka.bootstrap_servers();
    let settings = settings(&brokers, &topic);
    transactions.send(0..5, true);
    transactions.send(900..903, false);
    // Five records, their marker, three that were taken back, and their marker.
    let end = 10;
    let metrics = Metrics::new().unwrap();
    let nothing: tcbert_worker::kafka::CountStoredBeyond = std::sync::Arc::new(|_| Some(0));
    let source = KafkaSource::start_for_store(&settings, nothing, metrics.clone()).unwrap();
    let mut reader = Reader::over(source);
    reader.read_all(5);
    reader.commit(CommitMode::Wait).unwrap();
    status_to(&mut reader, "no lag", |status| {
        let position = status.partitions.first().and_then(|p| p.position);
        lags(status) == [Some(0)] && position == Some(end)
    });
    let commits = "tcbert_commits_total 2";
    let text = metrics.render();
    assert!(text.lines().any(|line| line == commits), "{text}");
    drop(reader);
    // All of it expires while the topic is idle.
    kafka.expire_before(&topic, 0, end);
    transactions.send(5..8, true);
    let mut reader = Reader::start(&settings);
    reader.read_all(3);
    assert_eq!(reader.unique_keys(), keys(5..8));
}
