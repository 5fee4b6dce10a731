//! A backfill of a closed range reads the deletions behind it: the markers that the live worker wrote for
//! them may be gone from the store.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tcbert_worker::document::DocumentId;
use tcbert_worker::kafka::{SampleProducer, SampleRecord};
use tcbert_worker::settings::Settings;
use tcbert_worker::store::{PointFilter, Store};

use crate::apache_kafka;
use crate::backfill::Ground;
use crate::processes::{self, finish, signal};
use crate::support::{Worker, document, documents, settings, titles};

/// As the upkeep of a later week does.
async fn remove_markers(store: &dyn Store) {
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    store.remove_markers(later).await.unwrap();
}

async fn is_there(store: &dyn Store, id: &str) -> bool {
    let found = titles(store, [id.to_owned()]).await;
    !found.is_empty()
}

fn report(command: &mut Command) -> Value {
    let output = processes::run(command);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn live_worker(settings: &Settings, store: &std::sync::Arc<dyn Store>, records: u64) {
    let live = Worker::start_with(settings, store.clone()).await;
    live.wait_for(records).await;
    live.stop().await;
}

/// A deletion, later than the range and longer ago than its marker lives, in the partition of the
/// document and, after the topic has got more partitions, in another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_range_does_not_bring_back_what_was_deleted_behind_it() {
    let Some(kafka) = apache_kafka::shared("a_closed_range_does_not_bring_back") else {
        return;
    };
    let ground = Ground::new(1);
    let topic = apache_kafka::unique("deleted-later");
    kafka.create_topic(&topic, 2, &[]);
    let dead_letters = format!("{topic}-dead");
    kafka.create_topic(&dead_letters, 1, &[]);
    let day = |day: i64| {
        let first: jiff::Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
        first.as_millisecond() + day * 86_400_000
    };
    let at =
        |record: SampleRecord, partition: i32, on: i64| record.to_partition(partition).at(day(on));
    let records = [
        at(document("kept", "央行宣布下调存款准备金率"), 0, 0),
        at(document("deleted", "将被删除的标题"), 0, 0),
        at(document("moved", "分区增加之前的标题"), 0, 0),
        at(document("again", "删除之前的标题"), 0, 0),
        // Behind the range.
        at(document("later", "范围之外的标题"), 0, 2),
        at(SampleRecord::tombstone("deleted"), 0, 2),
        at(SampleRecord::tombstone("again"), 0, 2),
        at(document("again", "删除之后的标题"), 0, 3),
        at(SampleRecord::tombstone("moved"), 1, 3),
        at(document("other", "另一分区的标题"), 1, 3),
    ];
    let producer = SampleProducer::new(kafka.bootstrap_servers()).unwrap();
    producer.produce(&topic, &records).unwrap();
    let url = ground.server.url();
    let settings = settings(
        &ground.broker,
        ground.folder.path(),
        &[
            ("STORE__KIND", "qdrant"),
            ("STORE__URL", url.as_str()),
            ("KAFKA__BROKERS", kafka.bootstrap_servers()),
            ("KAFKA__TOPIC", &topic),
            ("KAFKA__GROUP_ID", &topic),
        ],
    );
    let store = ground.store().await;
    live_worker(&settings, &store, 10).await;
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), 4);
    remove_markers(&*store).await;

    let backfill = |more: &[&str]| {
        let range = [
            "backfill",
            "--json",
            "--from",
            "2026-11-01",
            "--to",
            "2026-11-02",
        ];
        let mut command = ground.command(&[&range[..], more].concat());
        command
            .env("TCBERT__KAFKA__BROKERS", kafka.bootstrap_servers())
            .env("TCBERT__KAFKA__TOPIC", &topic)
            .env("TCBERT__KAFKA__GROUP_ID", &topic)
            .env("TCBERT__KAFKA__DEAD_LETTER_TOPIC", &dead_letters);
        report(&mut command)
    };
    let done = backfill(&[]);
    assert_eq!(done["delivered"], 7, "{done}");
    assert_eq!(done["source"]["skipped"], 3, "{done}");
    assert_eq!(done["source"]["offsets"], 10, "{done}");
    assert_eq!(done["source"]["offsets_done"], 10, "{done}");
    for (id, there) in [
        ("kept", true),
        ("deleted", false),
        ("moved", false),
        ("again", true),
        ("later", true),
        ("other", true),
    ] {
        assert_eq!(is_there(&*store, id).await, there, "{id}");
    }
    let again = titles(&*store, ["again".to_owned()]).await;
    assert_eq!(
        again,
        BTreeMap::from([("again".to_owned(), "删除之后的标题".to_owned())])
    );
    // Finished is finished, what lies behind included.
    assert_eq!(backfill(&["--once"])["already_finished"], true);

    // Who does not want it gets what stands in the range.
    remove_markers(&*store).await;
    let without = backfill(&["--skip-later-deletions"]);
    assert_eq!(without["delivered"], 4, "{without}");
    assert!(is_there(&*store, "deleted").await && is_there(&*store, "moved").await);
}

/// The documents behind the range are skipped, by two workers of which one is killed in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_behind_a_range_are_read_by_all_workers_and_after_a_kill() {
    const RANGE: usize = 120;
    let ground = Ground::new(2);
    let in_partition = |records: Vec<SampleRecord>| -> Vec<SampleRecord> {
        let numbered = records.into_iter().enumerate();
        numbered
            .map(|(index, record)| record.to_partition(i32::try_from(index % 2).unwrap()))
            .collect()
    };
    ground.produce(&in_partition(documents("doc", RANGE)));
    // Every third document of the range is deleted, among documents that are none of the range.
    let mut behind = documents("later", RANGE);
    for index in (0..RANGE).step_by(3) {
        behind[index] = SampleRecord::tombstone(&format!("doc-{index}"));
    }
    ground.produce(&in_partition(behind));
    let store = ground.store().await;
    live_worker(&ground.settings(), &store, 2 * RANGE as u64).await;
    remove_markers(&*store).await;
    // As a store that lost them, so that what comes is the backfill's.
    let expected = store.count(PointFilter::default()).await.unwrap();

    let job = [
        "backfill",
        "--json",
        "--offsets",
        "0:..60,1:..60",
        "--max-docs-per-second",
        "30",
    ];
    let first = ground.spawn(&job);
    let second = ground.spawn(&job);
    let deadline = Instant::now() + Duration::from_secs(60);
    let deleted = DocumentId::new("doc-0").unwrap();
    while store.fetch(deleted.clone()).await.unwrap().is_none() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(&first, "-KILL");
    finish(first);
    let output = finish(second);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(done["source"]["offsets_done"], 2 * RANGE as u64, "{done}");
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), expected);
    for index in (0..RANGE).step_by(3) {
        let id = format!("doc-{index}");
        assert!(!is_there(&*store, &id).await, "{id} has come back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_live_group_a_range_ends_where_it_ends() {
    let ground = Ground::new(1);
    ground.produce(&documents("doc", 10));
    ground.produce(&[SampleRecord::tombstone("doc-0")]);
    let done = report(&mut ground.command(&["backfill", "--json", "--offsets", "0:..10"]));
    assert_eq!(done["delivered"], 10, "{done}");
    assert_eq!(done["source"]["offsets"], 10, "{done}");
}

/// The deletion stands in a partition that is done long before the one of the document, and its marker
/// expires while the range is still being read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_that_expires_before_the_range_is_read_lets_nothing_come_back() {
    let ground = Ground::new(2);
    ground.produce(&[document("other", "另一分区的标题").to_partition(0)]);
    let mut slow = documents("doc", 60);
    slow.push(document("moved", "分区增加之前的标题"));
    slow.push(document("late", "稍后删除的标题"));
    let slow: Vec<_> = slow.into_iter().map(|doc| doc.to_partition(1)).collect();
    ground.produce(&slow);
    ground.produce(&[SampleRecord::tombstone("moved").to_partition(0)]);
    let store = ground.store().await;
    live_worker(&ground.settings(), &store, 64).await;
    remove_markers(&*store).await;
    assert!(!is_there(&*store, "moved").await && is_there(&*store, "late").await);

    let job = [
        "backfill",
        "--json",
        "--offsets",
        "0:..1,1:..62",
        "--max-docs-per-second",
        "8",
    ];
    let first = ground.spawn(&job);
    let upkeep = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                remove_markers(&*store).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    signal(&first, "-KILL");
    finish(first);
    // Meanwhile the live worker deletes another document of the range, in the partition that is done.
    ground.produce(&[SampleRecord::tombstone("late").to_partition(0)]);
    live_worker(&ground.settings(), &store, 1).await;
    let done = report(&mut ground.command(&job));
    upkeep.abort();
    assert_eq!(done["source"]["offsets_done"], 65, "{done}");
    for id in ["moved", "late"] {
        assert!(!is_there(&*store, id).await, "{id} has come back: {done}");
    }
    assert!(is_there(&*store, "doc-59").await && is_there(&*store, "other").await);
}
