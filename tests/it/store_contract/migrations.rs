//! Migrations over both stores.

use std::sync::Arc;

use tcbert_worker::store::bulk::{self, Bulk};
use tcbert_worker::store::migrate::{
    self, ApplyOptions, MigrateError, RollbackOptions, Step, Target,
};
use tcbert_worker::store::{self, Store, StoreError, StoreKind, StoreSettings};

use super::harness::{
    Harness, SIZE, embedded_settings, expectation, open, server_settings, version, write,
};
use crate::qdrant_server::{Options, TestServer};
use crate::support::Put;

/// A place without a collection.
struct Bare {
    settings: StoreSettings,
    _server: Option<TestServer>,
    _folder: Option<tempfile::TempDir>,
}

impl Bare {
    fn embedded() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            settings: embedded_settings(folder.path()),
            _server: None,
            _folder: Some(folder),
        }
    }

    fn server() -> Self {
        let server = TestServer::start(Options::default());
        Self {
            settings: server_settings(&server.url()),
            _server: Some(server),
            _folder: None,
        }
    }

    fn target(&self) -> Target {
        Target::new(&self.settings, expectation(SIZE))
    }

    async fn connect(&self) -> Arc<dyn Store> {
        store::connect(&self.settings).await.unwrap()
    }
}

macro_rules! over_both_stores {
    ($($contract:ident),* $(,)?) => {
        mod over_the_embedded_store {
            $(#[tokio::test]
            async fn $contract() {
                super::$contract(super::Bare::embedded()).await;
            })*
        }
        mod over_grpc {
            $(#[tokio::test]
            async fn $contract() {
                super::$contract(super::Bare::server()).await;
            })*
        }
    };
}

over_both_stores! {
    applying_twice_changes_nothing,
    a_missing_collection_is_named,
    another_vector_size_is_refused,
    another_space_is_refused,
    rolling_back_deletes_points_only_when_told,
    an_alias_moves_only_when_told,
    bulk_mode_ends_even_if_its_worker_is_gone,
}

fn now() -> jiff::Timestamp {
    "2024-06-01T12:00:00Z".parse().unwrap()
}

async fn applying_twice_changes_nothing(it: Bare) {
    let store = it.connect().await;
    let target = it.target();
    let plan = migrate::plan(&*store, &target).await.unwrap();
    assert!(!plan.is_complete());
    assert!(plan.migrations[0].applied_at.is_none());

    let options = ApplyOptions::default();
    let done = migrate::apply(&*store, &target, options, now())
        .await
        .unwrap();
    assert!(matches!(done.first(), Some(Step::CreateCollection { .. })));
    let again = migrate::apply(&*store, &target, options, now())
        .await
        .unwrap();
    assert_eq!(again, []);

    let plan = migrate::plan(&*store, &target).await.unwrap();
    assert!(plan.is_complete());
    assert_eq!(plan.migrations[0].applied_at, Some(now()));
    let found = store.collection().await.unwrap().unwrap();
    assert_eq!(found.vector_size, SIZE);
    assert_eq!(found.vector_name, "test");
    for key in ["topic", "source", "published_at", "deleted"] {
        assert!(found.indexes.contains_key(key), "{key}");
    }
    // What writes compare by, a server does with an index.
    let is_server = it.settings.kind == StoreKind::Qdrant;
    for key in ["version", "version_order", "kafka_offset"] {
        assert_eq!(found.indexes.contains_key(key), is_server, "{key}");
    }
    // An index that someone dropped comes back.
    store.admin().drop_index("topic".into()).await.unwrap();
    let done = migrate::apply(&*store, &target, options, now())
        .await
        .unwrap();
    assert!(matches!(&done[..], [Step::CreateIndex { key, .. }] if key == "topic"));
    store.close().await.unwrap();
}

async fn refusal(settings: &StoreSettings, size: usize, apply: bool) -> String {
    let opened = store::open(settings, &expectation(size), apply, now()).await;
    match opened.map(drop) {
        Err(StoreError::Fatal(reason)) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

async fn a_missing_collection_is_named(it: Bare) {
    let reason = refusal(&it.settings, SIZE, false).await;
    assert!(
        reason.contains("documents") && reason.contains("migrate apply"),
        "{reason}"
    );
    // Asked without the check, every question says the same.
    let store = it.connect().await;
    assert_eq!(store.collection().await, Ok(None));
    let error = store.put(vec![write("a", version(0, 1, 1), "a")]).await;
    assert!(matches!(error, Err(StoreError::Fatal(reason)) if reason.contains("migrate apply")));
    store.close().await.unwrap();
}

async fn another_vector_size_is_refused(it: Bare) {
    open(&it.settings).await.unwrap().close().await.unwrap();
    for apply in [false, true] {
        let reason = refusal(&it.settings, SIZE * 2, apply).await;
        assert!(reason.contains('8') && reason.contains("16"), "{reason}");
        assert!(reason.contains("store.collection"), "{reason}");
    }
}

async fn another_space_is_refused(it: Bare) {
    open(&it.settings).await.unwrap().close().await.unwrap();
    let mut other = expectation(SIZE);
    other.embedding_fingerprint = "another prompt".into();
    let opened = store::open(&it.settings, &other, true, now()).await;
    let reason = opened.map(drop).unwrap_err().to_string();
    assert!(reason.contains("another prompt"), "{reason}");
    // The first one still opens.
    open(&it.settings).await.unwrap().close().await.unwrap();
}

async fn rolling_back_deletes_points_only_when_told(it: Bare) {
    let store = open(&it.settings).await.unwrap();
    let target = it.target();
    let batch = vec![write("a", version(0, 1, 1), "a")];
    store.put(batch).await.unwrap();

    // What is only an index goes without a question, and no point with it.
    let options = RollbackOptions::default();
    assert_eq!(
        migrate::rollback(&*store, &target, options).await,
        Ok(Some(2))
    );
    let error = migrate::rollback(&*store, &target, options)
        .await
        .unwrap_err();
    assert!(
        matches!(error, MigrateError::WouldDelete { points: 1, .. }),
        "{error}"
    );
    assert!(store.collection().await.unwrap().is_some());

    let options = RollbackOptions {
        delete_points: true,
    };
    assert_eq!(
        migrate::rollback(&*store, &target, options).await,
        Ok(Some(1))
    );
    assert_eq!(store.collection().await, Ok(None));
    assert_eq!(migrate::rollback(&*store, &target, options).await, Ok(None));
    // And forward again.
    let options = ApplyOptions::default();
    migrate::apply(&*store, &target, options, now())
        .await
        .unwrap();
    assert_eq!(store.count(Default::default()).await, Ok(0));
    store.close().await.unwrap();
}

async fn an_alias_moves_only_when_told(mut it: Bare) {
    it.settings.alias = "live".into();
    it.settings.collection = "documents_1".into();
    open(&it.settings).await.unwrap().close().await.unwrap();

    it.settings.collection = "documents_2".into();
    let store = open(&it.settings).await.unwrap();
    let alias = || store.admin().alias("live".into());
    assert_eq!(alias().await, Ok(Some("documents_1".into())));
    let options = ApplyOptions { switch_alias: true };
    migrate::apply(&*store, &it.target(), options, now())
        .await
        .unwrap();
    assert_eq!(alias().await, Ok(Some("documents_2".into())));
    let batch = vec![write("a", version(0, 1, 1), "a")];
    store.put(batch).await.unwrap();
    store.close().await.unwrap();

    // Readers that use the alias see the collection.
    it.settings.collection = "live".into();
    it.settings.alias = String::new();
    let store = open(&it.settings).await.unwrap();
    assert_eq!(store.count(Default::default()).await, Ok(1));
    let found = store.collection().await.unwrap().unwrap();
    assert_eq!(found.name, "documents_2");
    store.close().await.unwrap();
}

async fn bulk_mode_ends_even_if_its_worker_is_gone(mut it: Bare) {
    it.settings.graph_from_points = 1_000_000;
    let store = open(&it.settings).await.unwrap();
    let before = store.admin().graph_threshold().await.unwrap();
    assert!(before > 0);
    let started: jiff::Timestamp = now();

    // Two workers, both end.
    let first = Bulk::begin(Arc::clone(&store), started).await.unwrap();
    assert_eq!(store.admin().graph_threshold().await, Ok(0));
    let second = Bulk::begin(Arc::clone(&store), started).await.unwrap();
    first.end().await.unwrap();
    assert_eq!(store.admin().graph_threshold().await, Ok(before));
    second.renew(started).await.unwrap();
    assert_eq!(store.admin().graph_threshold().await, Ok(0), "off again");
    second.end().await.unwrap();
    assert_eq!(store.admin().graph_threshold().await, Ok(before));

    // One that joins a worker that is killed knows from the lease what to go back to.
    let first = Bulk::begin(Arc::clone(&store), started).await.unwrap();
    drop(first);
    let second = Bulk::begin(Arc::clone(&store), started).await.unwrap();
    second.end().await.unwrap();
    assert_eq!(store.admin().graph_threshold().await, Ok(before));

    // One that is killed: not before its time is over, then by whoever comes next.
    drop(Bulk::begin(Arc::clone(&store), started).await.unwrap());
    let soon = started + jiff::SignedDuration::from_secs(200);
    assert_eq!(bulk::end_abandoned(&*store, soon).await, Ok(false));
    assert_eq!(store.admin().graph_threshold().await, Ok(0));
    let late = started + jiff::SignedDuration::from_secs(400);
    assert_eq!(bulk::end_abandoned(&*store, late).await, Ok(true));
    assert_eq!(bulk::end_abandoned(&*store, late).await, Ok(false));
    assert_eq!(store.admin().graph_threshold().await, Ok(before));
    store.close().await.unwrap();
}

#[tokio::test]
async fn limits_of_strict_mode_are_named() {
    use qdrant_client::Qdrant;
    use qdrant_client::qdrant::{StrictModeConfig, UpdateCollectionBuilder};
    let it = Harness::test_server().await;
    let client = Qdrant::from_url(&it.settings.url)
        .skip_compatibility_check()
        .build()
        .unwrap();
    let limits = [
        StrictModeConfig {
            upsert_max_batchsize: Some(100),
            ..StrictModeConfig::default()
        },
        StrictModeConfig {
            write_rate_limit: Some(100),
            ..StrictModeConfig::default()
        },
    ];
    for limit in limits {
        let strict = StrictModeConfig {
            enabled: Some(true),
            ..limit
        };
        let update = UpdateCollectionBuilder::new("documents").strict_mode_config(strict);
        client.update_collection(update).await.unwrap();
        let reason = refusal(&it.settings, SIZE, true).await;
        assert!(reason.contains("store.batch_points"), "{reason}");
    }
    let modest = StoreSettings {
        batch_points: Some(100),
        ..it.settings.clone()
    };
    open(&modest).await.unwrap().close().await.unwrap();
    it.end().await;
}

/// Replicas of a new deployment begin at the same moment: none of them fails because another one was
/// faster, and of two models only one gets the collection.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn workers_that_begin_together_share_one_collection() {
    for round in 0..5 {
        let it = Bare::server();
        let begin = |number: usize| {
            let mut expectation = expectation(SIZE);
            if number == 3 {
                expectation.embedding_fingerprint = "another model".to_owned();
            }
            let settings = it.settings.clone();
            tokio::spawn(async move {
                let opened = store::open(&settings, &expectation, true, now()).await;
                opened.map(drop).map_err(|error| error.to_string())
            })
        };
        let begun: Vec<_> = (0..4).map(begin).collect();
        let mut outcomes = Vec::new();
        for worker in begun {
            outcomes.push(worker.await.unwrap());
        }
        let stranger = outcomes.pop().unwrap();
        for outcome in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert!(stranger.is_ok(), "round {round}: {outcomes:?}");
            assert!(outcome.contains("another model"), "{outcome}");
        }
        let well = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(well, if stranger.is_ok() { 0 } else { 3 }, "{stranger:?}");
    }
}
