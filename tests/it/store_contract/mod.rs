//! What every store must do. Each function here runs over the embedded store and over gRPC: against the
//! test server, or against a real one where `TCBERT_TEST_QDRANT_URL` names it.

mod embedded;
pub(crate) mod harness;
mod migrations;
mod server;
mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tcbert_worker::store::{PointFilter, PointWrite, Store, StoreError};

use crate::support::Put;
use harness::{Harness, id, tombstone, tombstone_at, vector, version, write, write_on};

/// Each contract, once per store.
macro_rules! over_both_stores {
    ($($contract:ident),* $(,)?) => {
        mod over_the_embedded_store {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $contract() {
                super::$contract(super::Harness::embedded().await).await;
            })*
        }
        mod over_grpc {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $contract() {
                super::$contract(super::Harness::server().await).await;
            })*
        }
    };
}

over_both_stores! {
    what_is_written_is_found,
    a_redelivery_rewrites_the_same_point,
    older_loses_between_batches,
    older_loses_within_a_batch,
    an_equal_version_rewrites,
    files_are_compared_by_time,
    a_tombstone_hides_and_keeps_late_writes_out,
    markers_go_by_their_age,
    a_vector_that_does_not_fit_is_rejected,
    every_write_is_decided_by_its_version,
    concurrent_writers_end_at_the_newest,
    a_large_batch_goes_in_whole,
    an_empty_batch_is_done,
}

fn everything() -> PointFilter {
    PointFilter::default()
}

fn on_topic(topic: &str) -> PointFilter {
    PointFilter {
        topic: Some(topic.into()),
        ..PointFilter::default()
    }
}

/// Points from this offset of a partition of the topic `wire`, or from beyond it.
fn beyond(places: &[(i32, i64)]) -> PointFilter {
    let from_or_beyond = places
        .iter()
        .map(|(partition, offset)| version(*partition, *offset, 0).position)
        .collect();
    PointFilter {
        from_or_beyond,
        ..PointFilter::default()
    }
}

async fn what_is_written_is_found(it: Harness) {
    let batch = vec![
        write_on("a", 1, 0, "财经", "电讯"),
        write_on("b", 2, 1, "体育", "电讯"),
        write_on("c", 3, 2, "财经", "晚报"),
    ];
    it.store.put(batch).await.unwrap();

    assert_eq!(it.store.count(everything()).await, Ok(3));
    assert_eq!(it.store.count(on_topic("财经")).await, Ok(2));
    let both = PointFilter {
        topic: Some("财经".into()),
        source: Some("晚报".into()),
        ..PointFilter::default()
    };
    assert_eq!(it.store.count(both.clone()).await, Ok(1));

    for (places, expected) in [
        (vec![(0, 2)], 2),
        (vec![(0, 4)], 0),
        (vec![(1, 0)], 0),
        (vec![(1, 0), (0, 3)], 1),
    ] {
        assert_eq!(
            it.store.count(beyond(&places)).await,
            Ok(expected),
            "{places:?}"
        );
    }

    let hits = it.store.search(vector(1), everything(), 2).await.unwrap();
    assert_eq!(hits.len(), 2);
    assert_eq!(hits[0].payload["id"], "b");
    assert_eq!(hits[0].point_id, id("b").point_id());
    assert!((hits[0].score - 1.0).abs() < 1e-4, "{}", hits[0].score);
    assert!(hits[0].score > hits[1].score);
    let hits = it.store.search(vector(1), both, 5).await.unwrap();
    assert_eq!(hits.len(), 1);
    assert_eq!(hits[0].payload["id"], "c");

    let stored = it.store.fetch(id("a")).await.unwrap().unwrap();
    assert_eq!(
        serde_json::Value::Object(stored),
        json!({
            "id": "a", "title": "a", "topic": "财经", "source": "电讯", "probability": 0.5,
            "topics": [{"label": "财经", "probability": 0.5}], "attributes": {"页": 3, "空": null},
            "published_at": "2024-04-30T08:00:00Z", "truncated": false, "version": 1,
            "kafka_topic": "wire", "kafka_partition": 0, "kafka_offset": 1, "version_order": 0,
        })
    );
    assert_eq!(it.store.fetch(id("z")).await, Ok(None));
    it.end().await;
}

async fn a_redelivery_rewrites_the_same_point(it: Harness) {
    for _ in 0..3 {
        let batch = vec![write("a", version(0, 1, 10), "first")];
        it.store.put(batch).await.unwrap();
    }
    assert_eq!(it.store.count(everything()).await, Ok(1));
    it.end().await;
}

async fn older_loses_between_batches(it: Harness) {
    for (new, title) in [
        (version(0, 10, 1000), "stored"),
        (version(0, 9, 9999), "older offset, later time"),
        (version(1, 99, 999), "other partition, earlier time"),
    ] {
        it.store.put(vec![write("a", new, title)]).await.unwrap();
        assert_eq!(it.title("a").await.as_deref(), Some("stored"), "{title}");
    }
    for (new, title) in [
        (version(0, 11, 1), "newer offset, earlier time"),
        (version(1, 0, 2), "other partition, later time"),
    ] {
        it.store.put(vec![write("a", new, title)]).await.unwrap();
        assert_eq!(it.title("a").await.as_deref(), Some(title));
    }
    it.end().await;
}

async fn older_loses_within_a_batch(it: Harness) {
    let batch = vec![
        write("a", version(0, 2, 10), "newest"),
        write("b", version(0, 3, 10), "beside"),
        write("a", version(0, 1, 99), "older"),
    ];
    it.store.put(batch).await.unwrap();
    assert_eq!(it.title("a").await.as_deref(), Some("newest"));
    assert_eq!(it.title("b").await.as_deref(), Some("beside"));
    // One batch in which one point is older than what is stored, one newer, one new.
    let batch = vec![
        write("a", version(0, 1, 99), "older"),
        write("b", version(0, 4, 10), "newer"),
        write("c", version(0, 5, 10), "new"),
    ];
    it.store.put(batch).await.unwrap();
    assert_eq!(it.title("a").await.as_deref(), Some("newest"));
    assert_eq!(it.title("b").await.as_deref(), Some("newer"));
    assert_eq!(it.title("c").await.as_deref(), Some("new"));
    it.end().await;
}

async fn an_equal_version_rewrites(it: Harness) {
    for title in ["once", "again"] {
        let batch = vec![write("a", version(2, 7, 10), title)];
        it.store.put(batch).await.unwrap();
    }
    assert_eq!(it.title("a").await.as_deref(), Some("again"));
    it.end().await;
}

async fn files_are_compared_by_time(it: Harness) {
    for (new, title, stored) in [
        (version(-1, 500, 100), "from a file", "from a file"),
        (
            version(-1, 900, 99),
            "a later line, an earlier time",
            "from a file",
        ),
        (
            version(-1, 1, 101),
            "an earlier line, a later time",
            "an earlier line, a later time",
        ),
        (
            version(0, 1, 100),
            "an older record",
            "an earlier line, a later time",
        ),
        (version(0, 1, 102), "a record", "a record"),
        (version(-1, 9, 101), "an older line", "a record"),
    ] {
        it.store.put(vec![write("a", new, title)]).await.unwrap();
        assert_eq!(
            it.title("a").await.as_deref(),
            Some(stored),
            "after {title}"
        );
    }
    it.end().await;
}

async fn a_tombstone_hides_and_keeps_late_writes_out(it: Harness) {
    let batch = vec![
        write("a", version(0, 1, 10), "first"),
        write("b", version(0, 2, 10), "beside"),
    ];
    it.store.put(batch).await.unwrap();
    it.store
        .put(vec![tombstone("a", version(0, 5, 50))])
        .await
        .unwrap();
    assert_eq!(it.store.count(everything()).await, Ok(1));
    assert_eq!(it.store.count(on_topic("财经")).await, Ok(1));
    let hits = it.store.search(vector(5), everything(), 10).await.unwrap();
    assert_eq!(hits.len(), 1);
    assert_eq!(hits[0].payload["id"], "b");

    let marker = it.store.fetch(id("a")).await.unwrap().unwrap();
    assert_eq!(
        serde_json::Value::Object(marker.clone()),
        json!({
            "id": "a", "version": 50, "deleted": true, "deleted_at": "2024-05-01T00:00:00Z",
            "kafka_topic": "wire", "kafka_partition": 0, "kafka_offset": 5, "version_order": 0,
        })
    );
    // Late older writes do not bring it back, from whatever partition.
    for late in [version(0, 4, 999), version(1, 8, 49)] {
        it.store.put(vec![write("a", late, "late")]).await.unwrap();
        assert_eq!(it.store.fetch(id("a")).await, Ok(Some(marker.clone())));
    }
    // An older tombstone changes nothing; one for a document never seen leaves a marker.
    it.store
        .put(vec![
            tombstone("b", version(0, 1, 1)),
            tombstone("c", version(0, 9, 90)),
        ])
        .await
        .unwrap();
    assert_eq!(it.title("b").await.as_deref(), Some("beside"));
    it.store
        .put(vec![write("c", version(0, 8, 80), "late")])
        .await
        .unwrap();
    assert_eq!(it.title("c").await, None);
    // A newer write brings it back, marker gone.
    it.store
        .put(vec![write("a", version(0, 6, 60), "back")])
        .await
        .unwrap();
    let back = it.store.fetch(id("a")).await.unwrap().unwrap();
    assert_eq!(back["title"], "back");
    assert!(!back.contains_key("deleted"));
    assert_eq!(it.store.count(everything()).await, Ok(2));
    // Within one batch: written and deleted.
    it.store
        .put(vec![
            write("d", version(0, 20, 1), "short-lived"),
            tombstone("d", version(0, 21, 1)),
        ])
        .await
        .unwrap();
    assert_eq!(it.title("d").await, None);
    it.end().await;
}

async fn markers_go_by_their_age(it: Harness) {
    let batch = vec![
        write("a", version(0, 1, 1), "stays"),
        tombstone_at("b", version(0, 2, 2), "2024-05-01T00:00:00Z"),
        tombstone_at("c", version(0, 3, 3), "2024-05-02T00:00:00.5Z"),
    ];
    it.store.put(batch).await.unwrap();
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    let removed = it.store.remove_markers(at("2024-05-01T00:00:00Z")).await;
    assert_eq!(removed, Ok(0));
    let removed = it.store.remove_markers(at("2024-05-02T00:00:00Z")).await;
    assert_eq!(removed, Ok(1));
    assert_eq!(it.store.fetch(id("b")).await, Ok(None));
    assert!(it.store.fetch(id("c")).await.unwrap().is_some());
    assert_eq!(it.title("a").await.as_deref(), Some("stays"));
    let removed = it.store.remove_markers(at("2024-05-03T00:00:00Z")).await;
    assert_eq!(removed, Ok(1));
    assert_eq!(it.store.count(everything()).await, Ok(1));
    it.end().await;
}

async fn a_vector_that_does_not_fit_is_rejected(it: Harness) {
    let mut narrow = write("narrow", version(0, 1, 1), "narrow");
    if let PointWrite::Upsert(point) = &mut narrow {
        point.vector.pop();
    }
    let error = it.store.put(vec![narrow]).await.unwrap_err();
    assert!(matches!(&error, StoreError::Rejected(reason) if reason.contains("narrow")));
    // The store goes on.
    let batch = vec![write("a", version(0, 2, 2), "fine")];
    it.store.put(batch).await.unwrap();
    assert_eq!(it.store.count(everything()).await, Ok(1));
    it.end().await;
}

/// Every pair of versions out of a small world, each on a document of its own: the second write wins
/// exactly when `Version::compare` does not call it older. So both stores follow one rule.
async fn every_write_is_decided_by_its_version(it: Harness) {
    let mut versions = Vec::new();
    for partition in -1..2 {
        for offset in 0..3 {
            versions.extend((0..3).map(|at| version(partition, offset, at)));
        }
    }
    let mut first = Vec::new();
    let mut second = Vec::new();
    let mut expected = Vec::new();
    for (stored, earlier) in versions.iter().enumerate() {
        for (new, later) in versions.iter().enumerate() {
            let document = format!("{stored}-{new}");
            let wins = later.compare(earlier) != std::cmp::Ordering::Less;
            // Every third document is deleted first, every fifth one after.
            first.push(if expected.len() % 3 == 0 {
                tombstone(&document, earlier.clone())
            } else {
                write(&document, earlier.clone(), "first")
            });
            second.push(if expected.len() % 5 == 0 {
                tombstone(&document, later.clone())
            } else {
                write(&document, later.clone(), "second")
            });
            let title = match (wins, expected.len()) {
                (true, number) => (number % 5 != 0).then_some("second"),
                (false, number) => (number % 3 != 0).then_some("first"),
            };
            expected.push((document, title));
        }
    }
    it.store.put(first).await.unwrap();
    it.store.put(second).await.unwrap();
    for (document, title) in expected {
        assert_eq!(it.title(&document).await.as_deref(), title, "{document}");
    }
    it.end().await;
}

/// Many tasks write many versions of a few documents at once, in random order, tombstones among
/// them: each document ends at its newest version.
async fn concurrent_writers_end_at_the_newest(it: Harness) {
    const DOCUMENTS: usize = 12;
    const VERSIONS: i64 = 30;
    const WRITERS: usize = 8;
    for seed in 0..3 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut writes: Vec<PointWrite> = Vec::new();
        let mut newest: BTreeMap<String, Option<String>> = BTreeMap::new();
        for document in 0..DOCUMENTS {
            let name = format!("seed-{seed}-{document}");
            // Times grow with offsets, as they do in a topic: then "newest" has one meaning.
            for at in 0..VERSIONS {
                let new = version(random.random_range(0..3), at, at);
                let title = format!("version {at}");
                let delete = random.random_bool(0.2);
                newest.insert(name.clone(), (!delete).then(|| title.clone()));
                writes.push(if delete {
                    tombstone(&name, new)
                } else {
                    write(&name, new, &title)
                });
            }
        }
        writes.shuffle(&mut random);
        let share = writes.len().div_ceil(WRITERS);
        let tasks = writes.chunks(share).map(|share| {
            let share = share.to_vec();
            let store: Arc<dyn Store> = Arc::clone(&it.store);
            tokio::spawn(async move {
                for batch in share.chunks(7) {
                    store.put(batch.to_vec()).await.unwrap();
                }
            })
        });
        for task in join_all(tasks).await {
            task.unwrap();
        }
        for (name, title) in newest {
            assert_eq!(it.title(&name).await, title, "{name}");
        }
    }
    it.end().await;
}

async fn a_large_batch_goes_in_whole(it: Harness) {
    let batch: Vec<PointWrite> = (0..1000)
        .map(|number| write_on(&format!("n-{number}"), number, 3, "财经", "电讯"))
        .collect();
    it.store.put(batch).await.unwrap();
    assert_eq!(it.store.count(everything()).await, Ok(1000));
    it.end().await;
}

async fn an_empty_batch_is_done(it: Harness) {
    it.store.put(Vec::new()).await.unwrap();
    assert_eq!(it.store.count(everything()).await, Ok(0));
    it.end().await;
}
