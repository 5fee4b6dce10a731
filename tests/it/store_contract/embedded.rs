//! What only the embedded store does: it survives a kill, keeps its log in bounds, shares its folder
//! with nobody and stops before the disk is full.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use qdrant_edge::{
    EdgeShard, PointId, PointInsertOperations, PointOperations, PointStruct, UpdateOperation,
    Vectors, WithVector,
};
use tcbert_worker::store::embedded::EmbeddedStore;
use tcbert_worker::store::{PointFilter, StoreError, StoreSettings};

use crate::processes::{PROCESS_PATIENCE, Watch};
use crate::support::Put;

use super::harness::{
    Harness, embedded_settings, id, open, tombstone, vector, version, write, write_on,
};

const CHILD: &str = "TCBERT_TEST_STORE_CHILD";
const CHILD_ROUND: &str = "TCBERT_TEST_STORE_CHILD_ROUND";

/// The other process of the test below: writes for ever and names on standard output what was
/// acknowledged. Alone it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_is_killed() {
    let Ok(folder) = std::env::var(CHILD) else {
        return;
    };
    let store = open(&embedded_settings(Path::new(&folder))).await.unwrap();
    let first: i64 = std::env::var(CHILD_ROUND).unwrap().parse().unwrap();
    for round in first.. {
        let documents: Vec<String> = (0..40)
            .map(|number| format!("n-{}", (round * 17 + number) % 500))
            .collect();
        let batch = documents
            .iter()
            .map(|document| write(document, version(0, round, round), &format!("{round}")))
            .collect();
        store.put(batch).await.unwrap();
        for document in documents {
            println!("acknowledged {document} {round}");
        }
    }
}

/// `kill -9` in the middle of writing, several times over: what was acknowledged is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<String, i64> = BTreeMap::new();
    for life in [150_u64, 220, 90] {
        let newest = acknowledged.values().max().copied().unwrap_or_default();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store_contract::embedded::child_that_is_killed",
                "--nocapture",
            ])
            .env(CHILD, folder.path())
            .env(CHILD_ROUND, (newest + 1).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let watch = Watch::over(child.id(), PROCESS_PATIENCE);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let killer = std::thread::spawn({
            let mut started = false;
            move || {
                let mut seen = Vec::new();
                let mut deadline = None;
                for line in lines.by_ref().map_while(Result::ok) {
                    let mut words = line
                        .split(' ')
                        .skip_while(|word| !word.ends_with("acknowledged"));
                    if let (Some(_), Some(document), Some(round)) =
                        (words.next(), words.next(), words.next())
                    {
                        seen.push((document.to_owned(), round.parse::<i64>().unwrap()));
                    }
                    if !started && !seen.is_empty() {
                        started = true;
                        deadline = Some(std::time::Instant::now() + Duration::from_millis(life));
                    }
                    if deadline.is_some_and(|deadline| std::time::Instant::now() > deadline) {
                        child.kill().unwrap();
                        deadline = None;
                    }
                }
                child.wait().unwrap();
                seen
            }
        });
        let seen = killer.join().unwrap();
        assert!(!watch.end(), "the child went on without a word");
        assert!(!seen.is_empty(), "the child wrote nothing");
        for (document, round) in seen {
            let newest = acknowledged.entry(document).or_default();
            *newest = round.max(*newest);
        }
        let store = open(&embedded_settings(folder.path())).await.unwrap();
        for (document, round) in &acknowledged {
            let stored = store.fetch(id(document)).await.unwrap();
            let stored = stored.unwrap_or_else(|| panic!("{document} is lost"));
            let found: i64 = stored["title"].as_str().unwrap().parse().unwrap();
            assert!(found >= *round, "{document}: {found} is older than {round}");
        }
        let points = store.count(PointFilter::default()).await.unwrap();
        assert!(points >= acknowledged.len() as u64);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_closed_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = embedded_settings(folder.path());
    let store = open(&settings).await.unwrap();
    let batch = vec![
        write("a", version(0, 1, 1), "kept"),
        tombstone("b", version(0, 2, 2)),
    ];
    store.put(batch).await.unwrap();
    store.close().await.unwrap();
    store.close().await.unwrap();
    let error = store.put(vec![write("c", version(0, 3, 3), "late")]).await;
    assert!(matches!(error, Err(StoreError::Fatal(_))));

    let store = open(&settings).await.unwrap();
    let stored = store.fetch(id("a")).await.unwrap().unwrap();
    assert_eq!(stored["title"], "kept");
    // Versions hold over a restart.
    let batch = vec![
        write("a", version(0, 0, 9), "older"),
        write("b", version(0, 1, 9), "older"),
    ];
    store.put(batch).await.unwrap();
    assert_eq!(
        store.fetch(id("a")).await.unwrap().unwrap()["title"],
        "kept"
    );
    assert_eq!(store.count(PointFilter::default()).await, Ok(1));
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_marker_holds_no_vector_even_after_optimising() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&embedded_settings(folder.path())).await.unwrap();
    let writes = (0..1000)
        .map(|number| write_on(&format!("n-{number}"), 1, 2, "财经", "电讯"))
        .collect();
    store.put(writes).await.unwrap();
    // A graph from the first point on: a finished segment, out of which points are moved.
    store.admin().set_graph_threshold(1).await.unwrap();
    store
        .put(vec![tombstone("n-7", version(0, 99, 99))])
        .await
        .unwrap();
    assert_eq!(store.count(PointFilter::default()).await, Ok(999));
    store.close().await.unwrap();

    let shard = EdgeShard::load(&folder.path().join("documents/shard"), None).unwrap();
    assert!(
        shard.info().indexed_vectors_count > 0,
        "nothing was optimised"
    );
    let vector_of = |document: &str| {
        let ids = [PointId::Uuid(id(document).point_id())];
        let found = shard
            .retrieve(&ids, None, Some(WithVector::Bool(true)))
            .unwrap();
        found[0].get_vector_by_name("test").is_some()
    };
    assert!(vector_of("n-8"));
    assert!(!vector_of("n-7"));
}

/// A point without our keys, as another program might have left it, does not stop ours.
#[tokio::test]
async fn a_stranger_s_point_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let settings = embedded_settings(folder.path());
    open(&settings).await.unwrap().close().await.unwrap();
    let shard = EdgeShard::load(&folder.path().join("documents/shard"), None).unwrap();
    let vectors = Vectors::new_named([("test", vector(1))]);
    let payload = serde_json::json!({"title": "stranger"});
    let point = PointStruct::new(PointId::Uuid(id("a").point_id()), vectors, payload);
    let points = PointInsertOperations::PointsList(vec![point.into()]);
    let operation = UpdateOperation::PointOperation(PointOperations::UpsertPoints(points));
    shard.update(operation).unwrap();
    drop(shard);

    let store = open(&settings).await.unwrap();
    let batch = vec![write("a", version(0, 0, i64::MIN), "ours")];
    store.put(batch).await.unwrap();
    let stored = store.fetch(id("a")).await.unwrap().unwrap();
    assert_eq!(stored["title"], "ours");
    store.close().await.unwrap();
}

#[tokio::test]
async fn the_log_stays_in_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let settings = StoreSettings {
        max_log_mb: 20,
        ..embedded_settings(folder.path())
    };
    let store = open(&settings).await.unwrap();
    let wal = folder.path().join("documents/shard/wal");
    let bytes = || -> u64 {
        let entries = std::fs::read_dir(&wal).unwrap();
        entries
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum()
    };
    let long = "字".repeat(3000);
    let mut most = 0;
    for round in 0..6 {
        let batch = (0..1000)
            .map(|number| write(&format!("n-{number}"), version(0, round, 0), &long))
            .collect();
        store.put(batch).await.unwrap();
        most = most.max(bytes());
        // The size is looked at once a second.
        if round % 3 == 2 {
            tokio::time::sleep(Duration::from_millis(1050)).await;
        }
    }
    assert!(
        most > 20_000_000,
        "the test never reached the bound: {most}"
    );
    let batch = vec![write("last", version(0, 99, 0), "last")];
    tokio::time::sleep(Duration::from_millis(1050)).await;
    store.put(batch.clone()).await.unwrap();
    store.put(batch).await.unwrap();
    assert!(bytes() < 30_000_000, "{}", bytes());
    // After trimming, numbering goes on: newer writes are not taken for old ones.
    let batch = vec![write("n-5", version(0, 50, 0), "after trimming")];
    store.put(batch).await.unwrap();
    let stored = store.fetch(id("n-5")).await.unwrap().unwrap();
    assert_eq!(stored["title"], "after trimming");
    assert_eq!(store.count(PointFilter::default()).await, Ok(1001));
    store.close().await.unwrap();
    let store = open(&settings).await.unwrap();
    assert_eq!(store.count(PointFilter::default()).await, Ok(1001));
    store.close().await.unwrap();
}

/// After a power cut the names of the log's last full files may be lost; the numbers that they stood for must not come
/// again, or the engine takes new writes for old ones.
#[tokio::test]
async fn names_of_the_log_that_are_lost_lose_no_write() {
    let folder = tempfile::tempdir().unwrap();
    let settings = embedded_settings(folder.path());
    let wal = folder.path().join("documents/shard/wal");
    let names = |prefix: &str| -> Vec<(u64, std::path::PathBuf)> {
        let entries = std::fs::read_dir(&wal).unwrap().map(Result::unwrap);
        let numbered = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            Some((name.strip_prefix(prefix)?.parse().unwrap(), entry.path()))
        });
        let mut numbered: Vec<_> = numbered.collect();
        numbered.sort();
        numbered
    };
    let long = "字".repeat(3000);
    for round in 0..3 {
        let store = open(&settings).await.unwrap();
        let batch = |offset| -> Vec<_> {
            (0..1000)
                .map(|number| write(&format!("n-{number}"), version(0, offset, 0), &long))
                .collect()
        };
        let first = vec![write("n-7", version(0, round * 10, 0), &format!("{round}"))];
        store.put(first).await.unwrap();
        let stored = store.fetch(id("n-7")).await.unwrap().unwrap();
        assert_eq!(stored["title"], format!("{round}"));
        for write in 0..4 {
            store.put(batch(round * 10 + write + 1)).await.unwrap();
        }
        store.close().await.unwrap();
        let closed = names("closed-");
        assert!(
            closed.len() > 3,
            "the log is too small for this test: {closed:?}"
        );
        for (lost, (_, path)) in closed.iter().rev().take(2).enumerate() {
            std::fs::rename(path, wal.join(format!("open-{}", 1_000 + lost))).unwrap();
        }
    }
    let store = open(&settings).await.unwrap();
    assert_eq!(store.count(PointFilter::default()).await, Ok(1000));
    store.close().await.unwrap();
}

/// A file of the log grows beyond its size only for an entry that is larger.
#[tokio::test]
async fn a_large_write_is_cut_into_requests_of_bounded_bytes() {
    let it = Harness::embedded().await;
    let long = "字".repeat(3000);
    let batch = (0..1000)
        .map(|number| write(&format!("n-{number}"), version(0, 1, 0), &long))
        .collect();
    it.store.put(batch).await.unwrap();
    assert_eq!(it.store.count(PointFilter::default()).await, Ok(1000));
    let wal = it.settings.path.join("documents/shard/wal");
    for entry in std::fs::read_dir(&wal).unwrap() {
        let bytes = entry.unwrap().metadata().unwrap().len();
        assert!(bytes <= 8 * 1024 * 1024, "{bytes}");
    }
}

#[tokio::test]
async fn two_stores_do_not_share_a_folder() {
    let it = Harness::embedded().await;
    let second = EmbeddedStore::open(&it.settings).await.map(drop);
    assert!(matches!(second, Err(StoreError::Fatal(reason)) if reason.contains("another process")));
    it.end().await;
}

#[tokio::test]
async fn a_full_disk_is_said_before_it_hurts() {
    let folder = tempfile::tempdir().unwrap();
    // The engine maps its files: where there is no room for them the process would end.
    let full = StoreSettings {
        min_free_mb: 1_000_000_000,
        ..embedded_settings(folder.path())
    };
    let error = open(&full).await.map(drop).unwrap_err();
    assert!(
        matches!(&error, StoreError::Full(reason) if reason.contains("store.path")),
        "{error}"
    );
    assert!(!folder.path().join(&full.collection).join("shard").exists());
    open(&embedded_settings(folder.path()))
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
    let settings = StoreSettings {
        min_free_mb: 1_000_000_000,
        ..embedded_settings(folder.path())
    };
    let store = open(&settings).await.unwrap();
    let batch = vec![write("a", version(0, 1, 1), "a")];
    let error = store.put(batch.clone()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Full(reason) if reason.contains("store.min_free_mb")));
    assert_eq!(store.count(PointFilter::default()).await, Ok(0));
    store.close().await.unwrap();
    let store = open(&embedded_settings(folder.path())).await.unwrap();
    store.put(batch).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let settings = embedded_settings(folder.path());
    open(&settings).await.unwrap().close().await.unwrap();
    let config = folder.path().join("documents/shard/edge_config.json");
    std::fs::write(&config, "{").unwrap();
    let error = open(&settings).await.map(drop).unwrap_err();
    assert!(
        matches!(&error, StoreError::Fatal(reason) if reason.contains("documents")),
        "{error}"
    );
}
