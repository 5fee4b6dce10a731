//! The order of versions, which both stores and `Version::may_replace` decide alike.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tcbert_worker::document::{LatestTime, TopicPartition, Version};
use tcbert_worker::store::version::may_replace;
use tcbert_worker::store::{PointWrite, WriteOutcome};

use super::harness::{Harness, tombstone, version, write};
use crate::support::Put;

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
    three_versions_end_at_the_same_one_in_every_order,
    equal_times_are_decided_by_the_order_of_partitions,
    later_lines_of_a_file_without_times_win,
    what_is_stored_with_a_time_in_the_future_yields,
    superseded_writes_are_counted,
    times_that_go_back_have_no_total_order,
}

const ARRIVALS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// A version of one of two files or three partitions, of which two share an order as partitions do
/// whose digests are equal.
fn ordered(log: i32, offset: i64, timestamp_ms: i64) -> Version {
    let (topic, partition, order) = match log {
        0 => ("file:a", TopicPartition::NO_PARTITION, 5),
        1 => ("file:b", TopicPartition::NO_PARTITION, 6),
        2 => ("wire", 0, 3),
        3 => ("wire", 1, 3),
        _ => ("other", 0, 9),
    };
    let mut version = version(partition, offset, timestamp_ms);
    version.position.partition = TopicPartition::new(topic, partition);
    version.order = order;
    version
}

/// Three versions whose times ascend within their partition.
fn ascending(random: &mut StdRng) -> [Version; 3] {
    loop {
        let mut draw = || {
            let (log, offset) = (random.random_range(0..5), random.random_range(0..4));
            ordered(log, offset, random.random_range(0..3))
        };
        let versions = [draw(), draw(), draw()];
        let ascends = versions.iter().all(|one| {
            versions.iter().all(|other| {
                one.position.partition != other.position.partition
                    || one.position.offset >= other.position.offset
                    || one.timestamp_ms <= other.timestamp_ms
            })
        });
        let distinct = |at: usize, other: usize| {
            versions[at].position != versions[other].position
                && versions[at].compare(&versions[other]).is_ne()
        };
        if ascends && distinct(0, 1) && distinct(1, 2) && distinct(0, 2) {
            return versions;
        }
    }
}

async fn three_versions_end_at_the_same_one_in_every_order(it: Harness) {
    const TRIPLES: usize = 120;
    let mut random = StdRng::seed_from_u64(24);
    let mut rounds: [Vec<PointWrite>; 3] = Default::default();
    let mut expected = Vec::new();
    for triple in 0..TRIPLES {
        let versions = ascending(&mut random);
        for (arrival, order) in ARRIVALS.iter().enumerate() {
            let document = format!("{triple}-{arrival}");
            let mut stored: Option<usize> = None;
            for (round, which) in rounds.iter_mut().zip(order) {
                let new = versions[*which].clone();
                if may_replace(stored.map(|at| &versions[at]), &new, LatestTime::ANY) {
                    stored = Some(*which);
                }
                round.push(write(&document, new, &which.to_string()));
            }
            let newest = (0..3).max_by(|a, b| versions[*a].compare(&versions[*b]));
            assert_eq!(stored, newest, "{order:?} of {versions:?}");
            expected.push((document, newest.unwrap(), versions.clone()));
        }
    }
    for round in rounds {
        it.store.put(round).await.unwrap();
    }
    for (document, newest, versions) in expected {
        let stored = it.title(&document).await;
        assert_eq!(stored, Some(newest.to_string()), "{document} {versions:?}");
    }
    it.end().await;
}

async fn equal_times_are_decided_by_the_order_of_partitions(it: Harness) {
    let (less, greater) = (ordered(3, 9, 100), ordered(4, 2, 100));
    for (document, arrival) in [("a", [&less, &greater]), ("b", [&greater, &less])] {
        for version in arrival {
            let title = format!("order {}", version.order);
            let batch = vec![write(document, version.clone(), &title)];
            it.store.put(batch).await.unwrap();
        }
        let title = it.title(document).await;
        assert_eq!(title.as_deref(), Some("order 9"), "{document}");
    }
    it.end().await;
}

async fn later_lines_of_a_file_without_times_win(it: Harness) {
    for (document, arrival) in [("a", [4, 7]), ("b", [7, 4])] {
        for line in arrival {
            let batch = vec![write(
                document,
                ordered(0, line, 0),
                &format!("line {line}"),
            )];
            it.store.put(batch).await.unwrap();
        }
        assert_eq!(it.title(document).await.as_deref(), Some("line 7"));
    }
    // A line of a later file or job wins whatever its number.
    let batch = vec![write("a", ordered(1, 0, 0), "later file")];
    it.store.put(batch).await.unwrap();
    assert_eq!(it.title("a").await.as_deref(), Some("later file"));
    it.end().await;
}

async fn what_is_stored_with_a_time_in_the_future_yields(it: Harness) {
    let now = jiff::Timestamp::from_millisecond(1_000).unwrap();
    let latest = LatestTime::after(now, Duration::from_millis(500));
    let batch = ["a", "b", "c", "d"].map(|document| write(document, ordered(2, 5, 9_000), "2099"));
    it.store.put(batch.to_vec()).await.unwrap();
    let deleted = vec![tombstone("e", ordered(2, 5, 9_000))];
    it.store.put(deleted).await.unwrap();
    // One time that is still allowed.
    let allowed = vec![write("f", ordered(2, 5, 1_500), "2099")];
    it.store.put(allowed).await.unwrap();
    let outcome = it
        .store
        .write(
            vec![
                write("a", ordered(4, 1, 700), "true"),
                // Within its partition the offset decides all the same.
                write("b", ordered(2, 4, 700), "true"),
                write("c", ordered(0, 1, 0), "true"),
                tombstone("d", ordered(3, 1, 700)),
                write("e", ordered(4, 1, 700), "true"),
                write("f", ordered(4, 1, 700), "true"),
            ],
            latest,
        )
        .await
        .unwrap();
    for (document, title) in [
        ("a", Some("true")),
        ("b", Some("2099")),
        ("c", Some("true")),
        ("d", None),
        ("e", Some("true")),
        ("f", Some("2099")),
    ] {
        assert_eq!(it.title(document).await.as_deref(), title, "{document}");
    }
    let expected = WriteOutcome {
        superseded_documents: 2,
        superseded_deletions: 0,
    };
    assert_eq!(outcome, expected);
    it.end().await;
}

async fn superseded_writes_are_counted(it: Harness) {
    let first = vec![
        write("a", version(0, 5, 50), "stored"),
        write("b", version(0, 6, 60), "stored"),
        write("c", version(0, 7, 70), "stored"),
        tombstone("d", version(0, 8, 80)),
    ];
    assert_eq!(it.store.put(first).await, Ok(WriteOutcome::default()));
    let second = vec![
        write("a", version(0, 4, 40), "older"),
        tombstone("b", version(0, 3, 30)),
        write("c", version(0, 7, 70), "equal"),
        write("d", version(0, 2, 20), "of what is deleted"),
        write("e", version(0, 11, 1), "older in the batch"),
        write("e", version(0, 12, 1), "newer in the batch"),
        write("a", version(0, 4, 40), "older, delivered again"),
    ];
    let expected = WriteOutcome {
        superseded_documents: 4,
        superseded_deletions: 1,
    };
    assert_eq!(it.store.put(second).await, Ok(expected));
    it.end().await;
}

/// The limit of every such rule: where times go back within a partition and the document moves between
/// partitions, the three versions win against each other in a circle, and what arrives last decides.
async fn times_that_go_back_have_no_total_order(it: Harness) {
    let versions = [
        ordered(2, 1, 30),
        // Newer by its offset, older by its time.
        ordered(2, 2, 10),
        ordered(4, 5, 20),
    ];
    let [early, back, moved] = &versions;
    assert!(back.compare(early).is_gt());
    assert!(early.compare(moved).is_gt());
    assert!(moved.compare(back).is_gt());
    let mut winners = Vec::new();
    for (document, arrival) in [("a", [0, 1, 2]), ("b", [2, 0, 1])] {
        for which in arrival {
            let batch = vec![write(document, versions[which].clone(), &which.to_string())];
            it.store.put(batch).await.unwrap();
        }
        winners.push(it.title(document).await);
    }
    assert_eq!(winners, [Some("2".to_owned()), Some("1".to_owned())]);
    it.end().await;
}
