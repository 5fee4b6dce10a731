//! The Kafka source against librdkafka's mock cluster: what is delivered, committed and handed
//! over, and what happens where the broker or the offsets are not as they should be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kafka_reader::{PATIENCE, Reader, failure_of, keys, records};
use crate::wire;
use tcbert_worker::document::{Receipt, TopicPartition};
use tcbert_worker::kafka::{
    EmbeddedBroker, FailingRequest, InjectedError, KafkaSettings, KafkaSource, OnMissingOffset,
    Properties, RangeJob, RangeSpec, SampleProducer, SampleRecord, group_positions,
};
use tcbert_worker::source::{
    CommitMode, CommitOffset, Header, Source, SourceError, SourceEvent, SourceRecord,
};
use tcbert_worker::watermark::Watermarks;

const TOPIC: &str = "news";

fn settings(brokers: &str) -> KafkaSettings {
    KafkaSettings {
        brokers: brokers.to_owned(),
        topic: TOPIC.to_owned(),
        group_id: "readers".to_owned(),
        session_timeout_ms: 6_000,
        commit_interval_ms: 100,
        ..KafkaSettings::default()
    }
}

fn broker(partitions: i32) -> (EmbeddedBroker, SampleProducer) {
    let broker = EmbeddedBroker::start(&[(TOPIC, partitions)]).unwrap();
    let producer = SampleProducer::new(&broker.bootstrap_servers()).unwrap();
    (broker, producer)
}

#[test]
fn delivers_records_as_they_were_produced() {
    let (broker, producer) = broker(3);
    let whole = SampleRecord {
        partition: Some(1),
        key: Some(b"id".to_vec()),
        value: Some("正文".as_bytes().to_vec()),
        headers: vec![
            Header {
                name: "ce_type".to_owned(),
                value: Some(b"article".to_vec()),
            },
            Header {
                name: "empty".to_owned(),
                value: None,
            },
        ],
        timestamp_ms: Some(1_700_000_000_123),
    };
    let bare = SampleRecord {
        partition: Some(2),
        ..SampleRecord::default()
    };
    producer.produce(TOPIC, &[whole.clone(), bare]).unwrap();

    let mut reader = Reader::start(&settings(&broker.bootstrap_servers()));
    reader.read_all(2);
    let by_partition: BTreeMap<i32, &SourceRecord> = reader
        .records
        .iter()
        .map(|record| (record.position.partition.partition, record))
        .collect();
    let record = by_partition[&1];
    assert_eq!(record.position.partition, TopicPartition::new(TOPIC, 1));
    assert_eq!(record.position.offset, 0);
    assert_eq!(record.key, whole.key);
    assert_eq!(record.value, whole.value);
    assert_eq!(record.headers, whole.headers);
    assert_eq!(record.timestamp_ms, whole.timestamp_ms);
    assert_eq!(
        (&by_partition[&2].key, &by_partition[&2].value),
        (&None, &None)
    );
}

#[test]
fn goes_on_after_the_committed_offset() {
    let (broker, producer) = broker(4);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..500, 4)).unwrap();
    let mut first = Reader::start(&settings);
    first.read_all(500);
    assert_eq!(first.unique_keys(), keys(0..500));
    assert_eq!(first.commit(CommitMode::Wait).unwrap().len(), 4);
    first.source.stop();
    first.source.close();

    producer.produce(TOPIC, &records(500..600, 4)).unwrap();
    let mut second = Reader::start(&settings);
    second.read_all(100);
    second.run_for(Duration::from_millis(300));
    assert_eq!(second.keys.len(), 100, "nothing is delivered twice");
    assert_eq!(second.unique_keys(), keys(500..600));
}

#[test]
fn reads_several_topics() {
    let (broker, producer) = broker(2);
    broker.create_topic("wire", 2).unwrap();
    producer.produce(TOPIC, &records(0..10, 2)).unwrap();
    producer.produce("wire", &records(10..20, 2)).unwrap();
    let mut reader = Reader::start(&KafkaSettings {
        topic: "news, wire".to_owned(),
        ..settings(&broker.bootstrap_servers())
    });
    reader.read_all(20);
    assert_eq!(reader.unique_keys(), keys(0..20));
}

#[test]
fn a_pipeline_that_does_not_read_pauses_the_source_and_loses_nothing() {
    const RECORDS: usize = 4_000;
    let (broker, producer) = broker(4);
    let mut reader = Reader::start(&KafkaSettings {
        queue_records: 80,
        ..settings(&broker.bootstrap_servers())
    });
    reader.run_to("the assignment", |reader| reader.partitions() == 4);
    producer.produce(TOPIC, &records(0..RECORDS, 4)).unwrap();
    reader.watch("a pause", |counters| counters.pauses > 0);
    // Longer than the session: only polling and heartbeats keep the member in.
    std::thread::sleep(Duration::from_millis(6_500));
    let waiting = reader.source.counters().records;
    assert!(
        waiting <= 100,
        "{waiting} records were taken beyond the bound"
    );
    reader.read_all(RECORDS);
    assert_eq!(reader.keys.len(), RECORDS, "nothing twice");
    assert_eq!(reader.unique_keys(), keys(0..RECORDS));
    assert_eq!(
        (reader.lost, reader.revoked),
        (0, 0),
        "still the same member"
    );
}

#[test]
fn two_members_share_the_partitions_and_hand_them_over_drained() {
    let (broker, producer) = broker(4);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..200, 4)).unwrap();
    let mut first = Reader::start(&settings);
    first.read_all(200);

    let handle = {
        let settings = settings.clone();
        std::thread::spawn(move || {
            let mut second = Reader::start(&settings);
            second.run_to("half of the partitions", |reader| reader.partitions() == 2);
            second
        })
    };
    first.run_to("two partitions left", |reader| reader.revoked == 2);
    while !handle.is_finished() {
        first.run_for(Duration::from_millis(50));
    }
    let mut second = handle.join().unwrap();
    assert_eq!(first.partitions(), 2, "the others were kept throughout");
    producer.produce(TOPIC, &records(200..400, 4)).unwrap();
    first.run_to("its half", |reader| reader.keys.len() >= 300);
    second.read_all(100);
    second.run_for(Duration::from_millis(200));
    // The mock refuses a commit now and then while a group is joining, as Kafka does not.
    if first.source.counters().commit_failures == 0 {
        assert_eq!(
            second.keys.len(),
            100,
            "what was drained and committed is not repeated"
        );
    }
    let mut all = first.unique_keys();
    all.extend(second.unique_keys());
    assert_eq!(all, keys(0..400));

    // The second leaves: the first takes everything back where the second stopped.
    second.commit(CommitMode::Wait).unwrap();
    second.source.close();
    first.run_to("all partitions again", |reader| reader.partitions() == 4);
    producer.produce(TOPIC, &records(400..500, 4)).unwrap();
    first.read_all(400);
    first.run_for(Duration::from_millis(200));
    assert_eq!(first.keys.len(), 400);
}

#[test]
fn a_drain_that_takes_too_long_is_cut_and_repeated_by_the_next_owner() {
    let (broker, producer) = broker(2);
    let settings = KafkaSettings {
        revoke_drain_ms: 300,
        ..settings(&broker.bootstrap_servers())
    };
    producer.produce(TOPIC, &records(0..20, 2)).unwrap();
    let mut first = Reader::start(&settings);
    first.read_all(20);
    let second = std::thread::spawn(move || {
        let mut second = Reader::start(&settings);
        second.run_to("its half again", |reader| reader.keys.len() == 10);
        second.keys.len()
    });
    // The pipeline keeps the revocation and never answers.
    let mut kept = Vec::new();
    while !second.is_finished() {
        if let Ok(event) = first.events.recv_timeout(Duration::from_millis(50)) {
            kept.push(event);
        }
    }
    assert_eq!(second.join().unwrap(), 10);
    assert!(
        kept.iter()
            .any(|event| matches!(event, SourceEvent::Revoked { .. }))
    );
}

#[test]
fn a_revocation_overtakes_what_waits_and_nothing_of_its_partition_follows() {
    let (broker, producer) = broker(2);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..2_000, 2)).unwrap();
    let first = Reader::start(&settings);
    // Everything, or as many chunks as there is room for, waits unread in the channel while a second member
    // takes one partition.
    first.watch("all records or a pause", |counters| {
        counters.records >= 2_000 || counters.pauses > 0
    });
    let second = std::thread::spawn(move || {
        let mut second = Reader::start(&settings);
        second.run_to("its partition whole", |reader| reader.keys.len() == 1_000);
    });
    let mut watermarks = Watermarks::new();
    let (mut taken, mut revoked) = (0, false);
    let deadline = Instant::now() + 2 * PATIENCE;
    while !second.is_finished() || taken < 1_000 {
        assert!(
            Instant::now() < deadline,
            "{taken} taken, {:?}",
            first.source.counters()
        );
        let Ok(event) = first.events.recv_timeout(Duration::from_millis(50)) else {
            continue;
        };
        match event {
            SourceEvent::Assigned {
                partitions,
                generation,
            } => {
                watermarks.assign(&partitions, generation);
                // Slow to take its first records, until the revocation is under way.
                let started = Instant::now();
                let leaving = |partition| !first.source.delivers(partition, generation);
                while !partitions.iter().any(leaving) && started.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(10));
                }
                // It begins before it has passed what waits: the first records dropped tell that it has. There may be
                // none to drop, then a second is plenty.
                let begun = Instant::now();
                while first.source.counters().dropped == 0
                    && begun.elapsed() < Duration::from_secs(1)
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            SourceEvent::Records(records) => {
                assert!(revoked, "the revocation had to wait for records");
                for record in records {
                    let receipt: Receipt = record.receipt();
                    let partition = &receipt.position.partition;
                    assert!(first.source.delivers(partition, receipt.generation));
                    assert!(watermarks.deliver(&receipt));
                    watermarks.acknowledge([&receipt]);
                    taken += 1;
                }
            }
            SourceEvent::Revoked { partitions, reply } => {
                assert_eq!(watermarks.in_flight_of(&partitions), 0);
                assert!(watermarks.revoke(&partitions).is_empty());
                reply.send(Vec::new()).unwrap();
                revoked = true;
            }
            event => panic!("{event:?}"),
        }
    }
    second.join().unwrap();
    let counters = first.source.counters();
    assert_eq!(taken, 1_000);
    assert!(counters.records - taken <= counters.dropped, "{counters:?}");
}

#[test]
fn waits_for_a_topic_that_does_not_exist_yet() {
    let broker = EmbeddedBroker::start(&[]).unwrap();
    let mut settings = settings(&broker.bootstrap_servers());
    settings.properties = tcbert_worker::kafka::Properties::from_pairs([(
        "topic.metadata.refresh.interval.ms",
        "500",
    )]);
    let mut reader = Reader::start(&settings);
    reader.run_for(Duration::from_millis(1_500));
    assert!(reader.failure.is_none());
    assert_eq!(
        reader.partitions(),
        0,
        "the consumer must not have made the topic"
    );
    broker.create_topic(TOPIC, 2).unwrap();
    let producer = SampleProducer::new(&broker.bootstrap_servers()).unwrap();
    producer.produce(TOPIC, &records(0..10, 2)).unwrap();
    reader.read_all(10);
}

#[test]
fn an_unreachable_broker_is_said_at_the_start() {
    let started = Instant::now();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let error = KafkaSource::start(&KafkaSettings {
        connect_timeout_ms: 2_000,
        ..settings(&address)
    })
    .err()
    .unwrap();
    let SourceError::Fatal(text) = error else {
        panic!("{error:?}");
    };
    assert!(
        text.contains(&address) && text.contains("refused"),
        "{text}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_group_without_offsets_may_be_refused() {
    let (broker, _producer) = broker(2);
    let text = failure_of(&KafkaSettings {
        on_missing_offset: OnMissingOffset::Error,
        ..settings(&broker.bootstrap_servers())
    });
    assert!(
        text.contains("news[0]") && text.contains("on_missing_offset"),
        "{text}"
    );
}

#[test]
fn an_expired_offset_is_refused_until_the_gap_is_accepted() {
    let (broker, producer) = broker(1);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..10, 1)).unwrap();
    let mut first = Reader::start(&settings);
    first.read_all(10);
    first.commit(CommitMode::Wait).unwrap();
    drop(first);
    // The mock keeps 5 MB a partition: these push the first batches out.
    let filler: Vec<SampleRecord> = (0..60)
        .map(|n| SampleRecord::new(&format!("big-{n}"), vec![b'x'; 100_000]).to_partition(0))
        .collect();
    for chunk in filler.chunks(5) {
        producer.produce(TOPIC, chunk).unwrap();
    }

    let text = failure_of(&settings);
    assert!(
        text.contains("records are gone") && text.contains("--accept-gap"),
        "{text}"
    );
    let gone: usize = text
        .split(": ")
        .find_map(|part| part.strip_suffix(" records are gone; to go on at the oldest record run `tcbert-worker run --accept-gap` once (or set kafka.accept_gap = true)"))
        .unwrap()
        .parse()
        .unwrap();
    let mut accepting = Reader::start(&KafkaSettings {
        accept_gap: true,
        ..settings
    });
    accepting.read_all(60 - gone);
    accepting.run_for(Duration::from_millis(200));
    assert_eq!(
        accepting.keys.len(),
        60 - gone,
        "exactly those that are left"
    );
    assert_eq!(
        accepting.records[0].position.offset,
        10 + i64::try_from(gone).unwrap()
    );
}

#[test]
fn an_offset_beyond_the_end_is_refused() {
    let (broker, producer) = broker(1);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..10, 1)).unwrap();
    let mut first = Reader::start(&settings);
    first.read_all(10);
    let mut offsets = first.watermarks.committable();
    offsets[0].next_offset = 500;
    first.source.commit(&offsets, CommitMode::Wait).unwrap();
    drop(first);
    let text = failure_of(&settings);
    assert!(text.contains("recreated or truncated"), "{text}");
    // What is stored of the earlier life would win over what comes: that cannot be accepted.
    let accepting = KafkaSettings {
        accept_gap: true,
        ..settings
    };
    let text = failure_of(&accepting);
    assert!(text.contains("store.collection"), "{text}");
    let anew = KafkaSettings {
        group_id: "another".to_owned(),
        ..accepting
    };
    Reader::start(&anew).read_all(10);
}

/// A commit in the background that fails is not forgotten by the one that is waited for.
#[test]
fn the_last_commit_waits_for_those_before_it() {
    let (broker, producer) = broker(1);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..10, 1)).unwrap();
    let mut reader = Reader::start(&settings);
    reader.read_all(10);
    broker.broker_down(-1).unwrap();
    let offsets = reader.watermarks.committable();
    reader
        .source
        .commit(&offsets, CommitMode::Background)
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    broker.broker_up(-1).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = reader.source.commit(&[], CommitMode::Wait) {
        assert!(Instant::now() < deadline, "{error}");
    }
    assert_eq!(group_positions(&settings).unwrap()[0].committed, Some(10));
}

/// Told to stop when everything is committed and nobody has looked yet.
#[test]
fn a_range_that_is_stopped_after_its_last_commit_is_finished() {
    let (broker, producer) = broker(2);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..40, 2)).unwrap();
    let job = RangeJob {
        name: "stopped".to_owned(),
        range: RangeSpec::parse_offsets("0:..,1:..").unwrap(),
        fingerprint: "f".to_owned(),
        once: false,
        later_deletions: true,
    };
    let mut reader = Reader::start_range(&settings, &job);
    reader.read_all(40);
    reader.source.stop();
    reader.commit(CommitMode::Wait).unwrap();
    reader.source.close();
    assert!(reader.source.range_progress().unwrap().is_finished());
}

#[test]
fn a_broker_that_goes_away_for_a_while_is_transient() {
    let (broker, producer) = broker(2);
    producer.produce(TOPIC, &records(0..10, 2)).unwrap();
    let mut reader = Reader::start(&settings(&broker.bootstrap_servers()));
    reader.read_all(10);
    broker.broker_down(-1).unwrap();
    reader.run_for(Duration::from_millis(1_500));
    assert!(reader.failure.is_none(), "{:?}", reader.failure);
    broker.broker_up(-1).unwrap();
    producer.produce(TOPIC, &records(10..20, 2)).unwrap();
    // Where the outage outlived the session, what was not committed comes once more.
    reader.run_to("the later records", |reader| {
        reader.unique_keys() == keys(0..20)
    });
}

#[test]
fn a_background_commit_that_fails_is_made_again() {
    let (broker, producer) = broker(1);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..10, 1)).unwrap();
    let mut first = Reader::start(&settings);
    first.read_all(10);
    broker
        .fail_requests(FailingRequest::OffsetCommit, InjectedError::Unknown, 1)
        .unwrap();
    first.commit(CommitMode::Background).unwrap();
    first.run_to("the commit at last", |reader| {
        reader.source.counters().commits == 1 && reader.source.counters().commit_failures == 1
    });
    drop(first);
    let mut second = Reader::start(&settings);
    second.run_for(Duration::from_millis(1_500));
    assert_eq!(second.keys, Vec::<String>::new());
}

#[test]
fn closing_is_bounded_while_the_broker_is_away() {
    let (broker, producer) = broker(2);
    producer.produce(TOPIC, &records(0..10, 2)).unwrap();
    let mut reader = Reader::start(&settings(&broker.bootstrap_servers()));
    reader.read_all(10);
    broker.broker_down(-1).unwrap();
    let started = Instant::now();
    reader.source.stop();
    reader.source.close();
    reader.source.close();
    assert!(
        started.elapsed() < Duration::from_secs(12),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_stopped_source_stays_a_member_and_commits() {
    let (broker, producer) = broker(2);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..10, 2)).unwrap();
    let mut reader = Reader::start(&settings);
    reader.read_all(10);
    reader.source.stop();
    std::thread::sleep(Duration::from_millis(200));
    producer.produce(TOPIC, &records(10..20, 2)).unwrap();
    reader.run_for(Duration::from_millis(800));
    assert_eq!(reader.keys.len(), 10, "nothing is delivered after the stop");
    assert_eq!(reader.partitions(), 2);
    reader.commit(CommitMode::Wait).unwrap();
    drop(reader);
    let mut next = Reader::start(&settings);
    next.read_all(10);
    assert_eq!(next.unique_keys(), keys(10..20));
}

#[test]
fn an_eager_assignor_of_the_users_own_works() {
    let (broker, producer) = broker(2);
    let mut settings = settings(&broker.bootstrap_servers());
    settings.properties =
        tcbert_worker::kafka::Properties::from_pairs([("partition.assignment.strategy", "range")]);
    producer.produce(TOPIC, &records(0..20, 2)).unwrap();
    let mut first = Reader::start(&settings);
    first.read_all(20);
    let second = std::thread::spawn(move || {
        let mut second = Reader::start(&settings);
        second.run_to("its half", |reader| reader.partitions() == 1);
        // The mock takes no commits while a group is joining, as Kafka does: its half may repeat.
        second.run_for(Duration::from_millis(300));
        assert!(second.keys.len() <= 10);
    });
    while !second.is_finished() {
        first.run_for(Duration::from_millis(50));
    }
    second.join().unwrap();
    assert!(first.revoked >= 2, "eager: everything is revoked first");
}

/// Any client but Java's sends such a name, and brokers keep it.
#[test]
fn a_header_whose_name_is_no_text_blocks_nothing() {
    let (broker, producer) = broker(1);
    let address = broker.bootstrap_servers();
    producer.produce(TOPIC, &records(0..1, 1)).unwrap();
    wire::produce_with_header(&address, (TOPIC, 0), (b"doc-1", b"v"), b"name\xff\xfe");
    producer.produce(TOPIC, &records(2..3, 1)).unwrap();
    let mut reader = Reader::start(&settings(&address));
    reader.read_all(3);
    assert_eq!(reader.unique_keys(), keys(0..3));
    assert_eq!(reader.records[1].value.as_deref(), Some(&b"v"[..]));
}

/// As a client of another language may have committed.
#[test]
fn metadata_of_a_commit_that_is_no_text_says_nothing() {
    let (broker, producer) = broker(2);
    let address = broker.bootstrap_servers();
    producer.produce(TOPIC, &records(0..20, 2)).unwrap();
    let settings = settings(&address);
    wire::commit_with_metadata(&address, &settings.group_id, (TOPIC, 0), 4, b"\xff\xfe{");
    let mut reader = Reader::start(&settings);
    reader.read_all(16);
    assert_eq!(reader.keys.len(), 16);
}

/// An assignment replaces the one before: a partition that begins later must not displace others.
#[test]
fn with_an_eager_assignor_no_partition_displaces_another() {
    let broker = EmbeddedBroker::start_cluster(2).unwrap();
    broker.create_topic(TOPIC, 2).unwrap();
    broker.move_leader(TOPIC, 0, 1).unwrap();
    broker.move_leader(TOPIC, 1, 2).unwrap();
    let address = broker.bootstrap_servers();
    let producer = SampleProducer::new(&address).unwrap();
    producer.produce(TOPIC, &records(0..20, 2)).unwrap();
    let settings = KafkaSettings {
        session_timeout_ms: 45_000,
        properties: Properties::from_pairs([("partition.assignment.strategy", "range")]),
        ..settings(&address)
    };
    let mut reader = Reader::start(&settings);
    reader.read_all(20);
    broker.broker_down(2).unwrap();
    reader.run_for(Duration::from_millis(500));
    broker
        .fail_requests(FailingRequest::Fetch, InjectedError::OffsetOutOfRange, 1)
        .unwrap();
    // Partition 0 begins alone: the leader of partition 1 does not respond.
    let first: Vec<_> = records(20..40, 2).into_iter().step_by(2).collect();
    producer.produce(TOPIC, &first).unwrap();
    reader.read_all(30);
    broker.broker_up(2).unwrap();
    reader.run_for(Duration::from_secs(4));
    let later = SampleProducer::new(&address).unwrap();
    later.produce(TOPIC, &records(40..60, 2)).unwrap();
    reader.read_all(50);
    assert_eq!(reader.keys.len(), 50, "nothing twice");
}

#[test]
fn members_that_come_and_go_while_logs_are_checked_leave_no_partition_behind() {
    let (broker, producer) = broker(6);
    let settings = settings(&broker.bootstrap_servers());
    producer.produce(TOPIC, &records(0..60, 6)).unwrap();
    let mut first = Reader::start(&settings);
    first.read_all(60);
    first.commit(CommitMode::Wait).unwrap();
    broker.delay_answers(Duration::from_millis(300)).unwrap();
    for _ in 0..3 {
        let settings = settings.clone();
        let second = std::thread::spawn(move || {
            let mut second = Reader::start(&settings);
            second.run_for(Duration::from_millis(1_700));
        });
        while !second.is_finished() {
            first.run_for(Duration::from_millis(50));
        }
        second.join().unwrap();
    }
    broker.delay_answers(Duration::ZERO).unwrap();
    first.run_to("all partitions", |reader| reader.partitions() == 6);
    producer.produce(TOPIC, &records(60..120, 6)).unwrap();
    first.run_to("all records", |reader| reader.unique_keys() == keys(0..120));
}

/// The client would pass over it, and does not say which one it is.
#[test]
fn a_batch_that_fails_its_checksum_is_named_and_not_skipped() {
    let (broker, producer) = broker(3);
    let address = broker.bootstrap_servers();
    producer.produce(TOPIC, &records(0..3, 3)).unwrap();
    wire::produce_damaged(&address, (TOPIC, 1), b"damaged");
    producer.produce(TOPIC, &records(3..6, 3)).unwrap();
    let mut reader = Reader::start(&settings(&address));
    // What was delivered and is not committed yet is not looked at again.
    reader.acknowledges = false;
    reader.run_to("the damaged batch in readiness", |reader| {
        let damaged = reader.source.status().damaged;
        damaged.is_some_and(|place| place.to_string() == format!("{TOPIC}[1]@1"))
    });
    reader.run_to("a failure", |reader| reader.failure.is_some());
    let failure = reader.failure.take().unwrap().to_string();
    let place = format!("of {TOPIC}[1] at offset 1 fails its checksum");
    assert!(failure.contains(&place), "{failure}");
    let read = reader.unique_keys();
    assert!(
        read.contains("doc-1") && !read.contains("doc-4"),
        "{read:?}"
    );
    let receipts: Vec<_> = reader.records.iter().map(SourceRecord::receipt).collect();
    reader.watermarks.acknowledge(&receipts);
    reader.commit(CommitMode::Wait).unwrap();
    let positions = group_positions(&settings(&address)).unwrap();
    let of_one = positions.iter().find(|one| one.partition.partition == 1);
    assert_eq!(of_one.unwrap().committed, Some(1));
    // It is named as long as the partition stands before it.
    reader.run_for(Duration::from_secs(5));
    assert!(reader.source.status().damaged.is_some());
    let one = reader
        .records
        .iter()
        .find(|one| one.position.partition.partition == 1);
    let one = one.unwrap();
    let past = CommitOffset {
        partition: one.position.partition.clone(),
        next_offset: 2,
        generation: one.generation,
    };
    reader.source.commit(&[past], CommitMode::Wait).unwrap();
    reader.run_to("a partition past it", |reader| {
        reader.source.status().damaged.is_none()
    });
}

#[test]
fn a_dead_letter_with_a_header_whose_name_is_no_text_is_listed() {
    const DEAD: &str = "dead";
    let (broker, _producer) = broker(1);
    broker.create_topic(DEAD, 1).unwrap();
    let address = broker.bootstrap_servers();
    wire::produce_with_header(&address, (DEAD, 0), (b"k", b"v"), b"\xff");
    let settings = KafkaSettings {
        dead_letter_topic: DEAD.to_owned(),
        ..settings(&address)
    };
    let found = broker.read_dead_letters(&settings).unwrap();
    assert_eq!(found.len(), 1);
}
