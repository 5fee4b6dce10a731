//! Dead letters against librdkafka's mock cluster: a letter is there with why and where from before
//! it counts as sent, whatever the broker does in between, and finds its way home.

use std::time::{Duration, Instant};

use tcbert_worker::document::{Generation, RecordPosition, TopicPartition};
use tcbert_worker::kafka::{
    CutValue, DeadLetterFilter, DeadLetterProducer, DeadLetterSettings, EmbeddedBroker,
    FailingRequest, InjectedError, KafkaSettings, ReplayOptions, Rest, SampleProducer,
    SampleRecord, list_dead_letters, replay_dead_letters,
};
use tcbert_worker::source::{DeadLetter, DeadLetterSink, Header, SourceRecord};

const DEAD: &str = "dead";

struct Bench {
    broker: EmbeddedBroker,
    kafka: KafkaSettings,
    settings: DeadLetterSettings,
    folder: tempfile::TempDir,
}

fn bench() -> Bench {
    let broker = EmbeddedBroker::start(&[("news", 3), (DEAD, 2)]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kafka = KafkaSettings {
        brokers: broker.bootstrap_servers(),
        topic: "news".to_owned(),
        dead_letter_topic: DEAD.to_owned(),
        ..KafkaSettings::default()
    };
    let settings = DeadLetterSettings {
        spool_dir: folder.path().join("spool").display().to_string(),
        cut_value_bytes: 10,
        ..DeadLetterSettings::default()
    };
    Bench {
        broker,
        kafka,
        settings,
        folder,
    }
}

fn letter(offset: i64, value: Option<Vec<u8>>) -> DeadLetter {
    DeadLetter {
        record: SourceRecord {
            position: RecordPosition {
                partition: TopicPartition::new("news", 1),
                offset,
            },
            generation: Generation(3),
            timestamp_ms: Some(1_700_000_000_000 + offset),
            key: Some(format!("doc-{offset}").into_bytes()),
            value,
            headers: vec![Header {
                name: "ce_type".to_owned(),
                value: Some(b"article".to_vec()),
            }],
            fault: None,
        },
        stage: "decode".to_owned(),
        class: if offset % 2 == 0 {
            "invalid_json"
        } else {
            "empty_text"
        }
        .to_owned(),
        message: format!("record {offset} 无法解析"),
    }
}

impl Bench {
    fn producer(&self) -> DeadLetterProducer {
        DeadLetterProducer::start(&self.kafka, &self.settings).unwrap()
    }

    fn letters(&self, filter: &DeadLetterFilter) -> Vec<tcbert_worker::kafka::StoredDeadLetter> {
        let mut letters = list_dead_letters(&self.kafka, filter).unwrap();
        letters.sort_by_key(|letter| letter.origin.as_ref().map(|origin| origin.offset));
        letters
    }
}

fn spooled(cut: &CutValue) -> &str {
    match &cut.rest {
        Rest::Spooled(file) => file,
        Rest::Omitted(_) => panic!("{cut:?}"),
    }
}

#[tokio::test]
async fn letters_are_there_whole_once_they_count_as_sent() {
    let bench = bench();
    let producer = bench.producer();
    assert!(bench.letters(&DeadLetterFilter::default()).is_empty());
    let sent: Vec<DeadLetter> = (0..20)
        .map(|n| letter(n, (n != 3).then(|| format!("{{broken {n}").into_bytes())))
        .collect();
    let outcomes = sent.iter().map(|letter| producer.send(letter.clone()));
    for outcome in futures::future::join_all(outcomes).await {
        outcome.unwrap();
    }

    let found = bench.letters(&DeadLetterFilter::default());
    assert_eq!(found.len(), 20);
    for (found, sent) in found.iter().zip(&sent) {
        assert_eq!(found.origin.as_ref(), Some(&sent.record.position));
        assert_eq!(found.key, sent.record.key);
        assert_eq!(found.value, sent.record.value);
        assert_eq!(found.headers, sent.record.headers);
        assert_eq!(found.timestamp_ms, sent.record.timestamp_ms);
        assert_eq!((&found.class, &found.message), (&sent.class, &sent.message));
    }
    let odd = DeadLetterFilter {
        class: Some("empty_text".to_owned()),
        limit: Some(4),
        ..DeadLetterFilter::default()
    };
    assert_eq!(bench.letters(&odd).len(), 4);
    let one = DeadLetterFilter {
        key: Some("doc-7".to_owned()),
        ..DeadLetterFilter::default()
    };
    assert_eq!(bench.letters(&one).len(), 1);
}

#[tokio::test]
async fn a_broker_that_is_away_is_waited_for() {
    let bench = bench();
    let producer = bench.producer();
    bench.broker.broker_down(-1).unwrap();
    let sending = producer.send(letter(0, Some(b"x".to_vec())));
    tokio::pin!(sending);
    let early = tokio::time::timeout(Duration::from_secs(2), &mut sending).await;
    assert!(
        early.is_err(),
        "it counts as sent though no broker has it: {early:?}"
    );
    bench.broker.broker_up(-1).unwrap();
    tokio::time::timeout(Duration::from_secs(20), sending)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(bench.letters(&DeadLetterFilter::default()).len(), 1);
}

#[tokio::test]
async fn what_the_broker_refuses_for_its_size_is_cut_and_spooled_whole() {
    let bench = bench();
    let producer = bench.producer();
    let large = letter(8, Some(b"0123456789abcdef".repeat(10)));
    bench
        .broker
        .fail_requests(FailingRequest::Produce, InjectedError::TooLarge, 1)
        .unwrap();
    producer.send(large.clone()).await.unwrap();

    let found = &bench.letters(&DeadLetterFilter::default())[0];
    assert_eq!(found.value.as_deref(), Some(&b"0123456789"[..]));
    let cut = found.cut.as_ref().unwrap();
    assert_eq!(cut.value_bytes, 160);
    assert!(
        bench
            .folder
            .path()
            .join("spool")
            .join(spooled(cut))
            .is_file()
    );

    // On its way home it is whole again.
    let mut said = 0;
    let all = DeadLetterFilter::default();
    let report = replay_dead_letters(
        &bench.kafka,
        &bench.settings,
        &all,
        ReplayOptions::default(),
        |_, outcome| {
            outcome.unwrap();
            said += 1;
        },
    )
    .unwrap();
    assert_eq!(
        (report.wanted, report.sent, report.left, said),
        (1, 1, 0, 1)
    );
    let home = KafkaSettings {
        dead_letter_topic: "news".to_owned(),
        ..bench.kafka.clone()
    };
    let record = &list_dead_letters(&home, &all).unwrap()[0];
    assert_eq!(record.position.partition.partition, 1);
    assert_eq!(record.value, large.record.value);
    assert_eq!(record.headers[..1], large.record.headers);
    assert_eq!(record.headers.len(), 2, "and where it first stood");
    assert_eq!(record.timestamp_ms, large.record.timestamp_ms);
}

#[tokio::test]
async fn a_full_spool_is_waited_for_and_nothing_is_lost() {
    let mut bench = bench();
    bench.settings.spool_max_bytes = 1024 * 1024;
    bench.settings.retry_max_ms = 200;
    let spool = bench.folder.path().join("spool");
    std::fs::create_dir_all(&spool).unwrap();
    std::fs::write(spool.join("old.json"), vec![b' '; 1024 * 1024]).unwrap();
    let producer = bench.producer();
    bench
        .broker
        .fail_requests(FailingRequest::Produce, InjectedError::TooLarge, 100)
        .unwrap();
    let sending = producer.send(letter(8, Some(vec![b'x'; 100])));
    tokio::pin!(sending);
    assert!(
        tokio::time::timeout(Duration::from_secs(1), &mut sending)
            .await
            .is_err()
    );
    std::fs::remove_file(spool.join("old.json")).unwrap();
    // The broker goes on to refuse every form: that cannot be mended by waiting.
    let error = tokio::time::timeout(Duration::from_secs(10), sending)
        .await
        .unwrap()
        .unwrap_err();
    let name = std::fs::read_dir(&spool).unwrap().next().unwrap().unwrap();
    let name = name.file_name().into_string().unwrap();
    assert!(name.starts_with("news-1-8-"), "{name}");
    assert!(error.to_string().contains(&name), "{error}");
}

#[tokio::test]
async fn a_dry_run_sends_nothing_and_foreign_records_stay() {
    let bench = bench();
    let producer = bench.producer();
    producer.send(letter(2, Some(b"x".to_vec()))).await.unwrap();
    producer.send(letter(3, Some(b"x".to_vec()))).await.unwrap();
    SampleProducer::new(&bench.kafka.brokers)
        .unwrap()
        .produce(DEAD, &[SampleRecord::new("foreign", "no headers")])
        .unwrap();

    let mut left = Vec::new();
    let all = DeadLetterFilter::default();
    let report = replay_dead_letters(
        &bench.kafka,
        &bench.settings,
        &all,
        ReplayOptions {
            dry_run: true,
            ..ReplayOptions::default()
        },
        |letter, outcome| {
            if let Err(reason) = outcome {
                left.push((letter.key_text(), reason));
            }
        },
    )
    .unwrap();
    assert_eq!((report.wanted, report.sent, report.left), (3, 0, 1));
    assert_eq!(left[0].0, "foreign");
    let home = KafkaSettings {
        dead_letter_topic: "news".to_owned(),
        ..bench.kafka.clone()
    };
    assert!(list_dead_letters(&home, &all).unwrap().is_empty());

    let even = DeadLetterFilter {
        class: Some("invalid_json".to_owned()),
        ..DeadLetterFilter::default()
    };
    let report = replay_dead_letters(
        &bench.kafka,
        &bench.settings,
        &even,
        ReplayOptions::default(),
        |_, _| {},
    )
    .unwrap();
    assert_eq!((report.wanted, report.sent), (1, 1));
    assert_eq!(list_dead_letters(&home, &all).unwrap().len(), 1);
}

#[test]
fn an_unreachable_broker_is_said() {
    let mut bench = bench();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    bench.kafka.brokers = free.local_addr().unwrap().to_string();
    bench.kafka.connect_timeout_ms = 1_000;
    drop(free);
    let started = Instant::now();
    let error = list_dead_letters(&bench.kafka, &DeadLetterFilter::default()).unwrap_err();
    assert!(error.to_string().contains(&bench.kafka.brokers), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}
