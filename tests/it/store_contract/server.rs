//! What only the store over gRPC does: it lives with a server that fails in every way a server fails.

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use qdrant_client::qdrant::{NamedVectors, PointStruct, UpsertPointsBuilder, Vector};
use qdrant_client::{Payload, Qdrant};
use serde_json::json;
use tcbert_worker::store::settings::ApiKey;
use tcbert_worker::store::{PointFilter, PointWrite, Store, StoreError, StoreSettings};

use super::harness::{
    Harness, SIZE, id, open, server_settings, tombstone, vector, version, write, write_on,
};
use crate::authority::Authority;
use crate::processes;
use crate::qdrant_server::{Fault, Options, TestServer};
use crate::support::Put;

/// As the pipeline does it: again until it is done, but here not for ever.
async fn write_until_done(store: &dyn Store, batch: &[PointWrite]) -> usize {
    for attempt in 1..200 {
        match store.put(batch.to_vec()).await {
            Ok(_) => return attempt,
            Err(StoreError::Transient(_) | StoreError::Full(_)) => {}
            Err(error) => panic!("gave up: {error}"),
        }
    }
    panic!("never done");
}

#[tokio::test]
async fn no_fault_that_passes_is_taken_for_success_or_for_poison() {
    let it = Harness::test_server().await;
    let faults = it.server_ref().faults();
    let batch = [
        write("a", version(0, 1, 1), "a"),
        write("b", version(0, 2, 2), "b"),
    ];
    for fault in [
        Fault::Unavailable,
        Fault::UnknownOutcome,
        Fault::WaitTimeout { applied: true },
        Fault::WaitTimeout { applied: false },
        Fault::Partial,
        Fault::ResourceExhausted,
    ] {
        // The client repeats some calls once by itself.
        faults.always(Some(fault.clone()));
        let error = it.store.put(batch.to_vec()).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Transient(_)),
            "{fault:?}: {error}"
        );
        faults.always(None);
    }
    for fault in [Fault::DiskFull, Fault::MemoryFull] {
        faults.always(Some(fault));
        let error = it.store.put(batch.to_vec()).await.unwrap_err();
        assert!(matches!(error, StoreError::Full(_)), "{error}");
    }
    faults.always(None);
    it.store.put(batch.to_vec()).await.unwrap();
    assert_eq!(it.store.count(PointFilter::default()).await, Ok(2));
    it.end().await;
}

/// A tenth to a half of all requests fail, in every way that passes: nothing is lost, nothing is stale.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_faults_lose_nothing() {
    let it = Harness::test_server().await;
    it.server_ref().faults().random(Some((7, 0.4)));
    for round in 0..15_i64 {
        let batch: Vec<_> = (0..20)
            .map(|number| {
                let document = format!("n-{number}");
                if (number + round) % 7 == 0 {
                    tombstone(&document, version(0, round, round))
                } else {
                    write(&document, version(0, round, round), &format!("{round}"))
                }
            })
            .collect();
        write_until_done(&*it.store, &batch).await;
        // A late repetition of an older batch, as a zombie would send it.
        let late: Vec<_> = (0..20)
            .map(|number| {
                write(
                    &format!("n-{number}"),
                    version(0, round - 1, round - 1),
                    "late",
                )
            })
            .collect();
        write_until_done(&*it.store, &late).await;
    }
    assert!(it.server_ref().faults().served() > 10);
    it.server_ref().faults().random(None);
    for number in 0..20 {
        let expected = ((number + 14) % 7 != 0).then(|| "14".to_owned());
        assert_eq!(
            it.title(&format!("n-{number}")).await,
            expected,
            "n-{number}"
        );
    }
    it.end().await;
}

#[tokio::test]
async fn a_late_answer_is_waited_for_within_the_timeout() {
    let it = Harness::test_server().await;
    let batch = vec![write("a", version(0, 1, 1), "a")];
    let slow = Fault::Slow(Duration::from_millis(300));
    it.server_ref().faults().push(slow);
    it.store.put(batch.clone()).await.unwrap();

    let hasty = StoreSettings {
        timeout_ms: 100,
        ..it.settings.clone()
    };
    let store = open(&hasty).await.unwrap();
    it.server_ref()
        .faults()
        .always(Some(Fault::Slow(Duration::from_secs(5))));
    let started = Instant::now();
    let error = store.put(batch.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Transient(_)), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
    it.server_ref().faults().always(None);
    write_until_done(&*store, &batch).await;
    it.end().await;
}

#[tokio::test]
async fn poison_is_rejected_and_the_rest_is_not() {
    let it = Harness::test_server().await;
    it.server_ref().faults().poison("poison");
    let batch = vec![
        write("a", version(0, 1, 1), "a"),
        write("poison", version(0, 2, 2), "poison"),
    ];
    let error = it.store.put(batch.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
    // What the pipeline does: halves.
    it.store.put(batch[..1].to_vec()).await.unwrap();
    let error = it.store.put(batch[1..].to_vec()).await.unwrap_err();
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
    assert_eq!(it.store.count(PointFilter::default()).await, Ok(1));
    it.end().await;
}

/// The protocol bounds how deeply messages nest: what neither server nor readers could decode is told
/// before it is sent, and all that is accepted comes back.
#[tokio::test]
async fn a_payload_that_is_nested_too_deeply_is_known_before_it_is_sent() {
    let it = Harness::server().await;
    let nested = |levels: usize, object: bool| {
        let mut value = json!("leaf");
        for _ in 0..levels {
            value = if object {
                json!({ "k": value })
            } else {
                json!([value])
            };
        }
        let mut write = write("deep", version(0, 1, 1), "deep");
        if let PointWrite::Upsert(point) = &mut write {
            point.payload.insert("deep".to_owned(), value);
        }
        write
    };
    for (object, most) in [(false, 48), (true, 32)] {
        let error = it
            .store
            .put(vec![nested(most + 1, object)])
            .await
            .unwrap_err();
        assert!(
            matches!(&error, StoreError::Unstorable(reason) if reason.contains("deep")),
            "{error}"
        );
        let deepest = nested(most, object);
        it.store.put(vec![deepest.clone()]).await.unwrap();
        let stored = it.store.fetch(id("deep")).await.unwrap().unwrap();
        let PointWrite::Upsert(point) = deepest else {
            unreachable!()
        };
        assert_eq!(stored.get("deep"), point.payload.get("deep"));
        let hits = it.store.search(vector(1), PointFilter::default(), 1).await;
        assert_eq!(hits.unwrap().len(), 1);
    }
    it.end().await;
}

/// A peer that has just joined its cluster does not know the collection for a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_is_away_for_a_moment_is_waited_for() {
    let it = Harness::test_server().await;
    it.store
        .put(vec![write("a", version(0, 1, 1), "a")])
        .await
        .unwrap();
    let admin = it.store.admin();
    admin.drop_collection().await.unwrap();
    let comes_back = async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let spec = tcbert_worker::store::CollectionSpec {
            vector_name: "test".into(),
            vector_size: SIZE,
        };
        let none = std::collections::BTreeMap::new();
        admin.create_collection(spec, none).await.unwrap();
    };
    let batch = vec![write("a", version(0, 2, 2), "b")];
    let (outcome, ()) = tokio::join!(it.store.put(batch), comes_back);
    let error = outcome.unwrap_err();
    assert!(matches!(error, StoreError::Transient(_)), "{error}");
    it.end().await;
}

/// Of a batch that is sent in several requests, one of them rejected and another refused for now, the
/// whole is tried again: nothing may be dead-lettered while the server is in trouble.
#[tokio::test]
async fn trouble_comes_before_rejection() {
    let it = Harness::test_server().await;
    let one_by_one = StoreSettings {
        batch_points: Some(1),
        concurrency: 1,
        ..it.settings.clone()
    };
    let store = open(&one_by_one).await.unwrap();
    it.server_ref().faults().poison("poison");
    // The first request fails for now; the client does not repeat this kind by itself.
    it.server_ref().faults().push(Fault::ResourceExhausted);
    let batch = vec![
        write("a", version(0, 1, 1), "a"),
        write("poison", version(0, 2, 2), "poison"),
    ];
    let error = store.put(batch).await.unwrap_err();
    assert!(matches!(error, StoreError::Transient(_)), "{error}");
    it.end().await;
}

/// A point without our keys, as another program might have left it, does not stop ours.
#[tokio::test]
async fn a_stranger_s_point_is_replaced() {
    let it = Harness::test_server().await;
    let client = Qdrant::from_url(&it.settings.url)
        .skip_compatibility_check()
        .build()
        .unwrap();
    let vectors = NamedVectors {
        vectors: HashMap::from([("test".to_owned(), Vector::new_dense(vector(1)))]),
    };
    let payload = Payload::from([("title", "stranger".into())]);
    let point = PointStruct::new(id("a").point_id().to_string(), vectors, payload);
    client
        .upsert_points(UpsertPointsBuilder::new("documents", vec![point]).wait(true))
        .await
        .unwrap();
    assert_eq!(it.title("a").await.as_deref(), Some("stranger"));
    let batch = vec![write("a", version(0, 0, -5), "ours")];
    it.store.put(batch).await.unwrap();
    assert_eq!(it.title("a").await.as_deref(), Some("ours"));
    it.end().await;
}

/// A point of an earlier version of this program has no order, which counts as 0.
#[tokio::test]
async fn a_point_without_order_is_the_first_at_its_time() {
    let it = Harness::test_server().await;
    let client = Qdrant::from_url(&it.settings.url)
        .skip_compatibility_check()
        .build()
        .unwrap();
    for document in ["a", "b", "c", "d"] {
        let vectors = NamedVectors {
            vectors: HashMap::from([("test".to_owned(), Vector::new_dense(vector(1)))]),
        };
        let payload = Payload::from([
            ("title", "stored".into()),
            ("version", 100.into()),
            ("kafka_topic", "wire".into()),
            ("kafka_partition", 0.into()),
            ("kafka_offset", 7.into()),
        ]);
        let point = PointStruct::new(id(document).point_id().to_string(), vectors, payload);
        client
            .upsert_points(UpsertPointsBuilder::new("documents", vec![point]).wait(true))
            .await
            .unwrap();
    }
    let outcome = it
        .store
        .put(vec![
            // Order 1, an earlier offset, the same time.
            write("a", version(1, 3, 100), "new"),
            write("b", version(1, 3, 99), "new"),
            write("c", version(0, 8, 50), "new"),
            write("d", version(0, 6, 150), "new"),
        ])
        .await
        .unwrap();
    for (document, title) in [("a", "new"), ("b", "stored"), ("c", "new"), ("d", "stored")] {
        assert_eq!(
            it.title(document).await.as_deref(),
            Some(title),
            "{document}"
        );
    }
    assert_eq!(outcome.superseded_documents, 2);
    it.end().await;
}

/// The collection is replaced under a running worker: that is no document's fault.
#[tokio::test]
async fn a_replaced_collection_is_fatal() {
    let it = Harness::test_server().await;
    let batch = vec![write("a", version(0, 1, 1), "a")];
    it.store.put(batch.clone()).await.unwrap();
    let admin = it.store.admin();
    admin.drop_collection().await.unwrap();
    let error = it.store.put(batch.clone()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Fatal(reason) if reason.contains("migrate apply")));
    let spec = tcbert_worker::store::CollectionSpec {
        vector_name: "test".into(),
        vector_size: 3,
    };
    admin
        .create_collection(spec, std::collections::BTreeMap::new())
        .await
        .unwrap();
    let error = it.store.put(batch).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Fatal(reason) if reason.contains("replaced")),
        "{error}"
    );
    it.end().await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_used_again() {
    let mut it = Harness::test_server().await;
    let batch = [write("a", version(0, 1, 1), "a")];
    it.store.put(batch.to_vec()).await.unwrap();
    it.server_mut().stop();
    for _ in 0..3 {
        let error = it.store.put(batch.to_vec()).await.unwrap_err();
        assert!(matches!(error, StoreError::Transient(_)), "{error}");
    }
    it.server_mut().resume();
    write_until_done(&*it.store, &batch).await;
    assert_eq!(it.store.count(PointFilter::default()).await, Ok(1));
    it.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_keep_their_bounds() {
    let it = Harness::test_server().await;
    let bounded = StoreSettings {
        batch_points: Some(64),
        max_batch_bytes: 100_000,
        concurrency: 3,
        ..it.settings.clone()
    };
    let store = open(&bounded).await.unwrap();
    let mut batch: Vec<_> = (0..400)
        .map(|number| write_on(&format!("n-{number}"), number, 1, "财经", "电讯"))
        .collect();
    let long = "字".repeat(2000);
    batch.extend(
        (0..40).map(|number| write(&format!("long-{number}"), version(0, number, 0), &long)),
    );
    store.put(batch).await.unwrap();
    assert_eq!(store.count(PointFilter::default()).await, Ok(440));
    let seen = it.server_ref().seen();
    assert!(seen.most_points.load(Ordering::SeqCst) <= 64);
    assert!(seen.most_bytes.load(Ordering::SeqCst) <= 100_000);
    assert!(seen.most_in_flight.load(Ordering::SeqCst) <= 3);
    assert!(
        seen.most_in_flight.load(Ordering::SeqCst) > 1,
        "nothing was in flight together"
    );
    it.end().await;
}

async fn start_error(settings: &StoreSettings) -> String {
    let started = Instant::now();
    let error = open(settings).await.map(drop).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(matches!(error, StoreError::Fatal(_)), "{error:?}");
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[tokio::test]
async fn a_server_out_of_reach_is_one_clear_error() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let text = start_error(&server_settings(&url)).await;
    assert!(text.contains(&url) && text.contains("store.url"), "{text}");

    // One that takes the connection and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = StoreSettings {
        timeout_ms: 300,
        connect_timeout_ms: 300,
        ..server_settings(&format!("http://{}", silent.local_addr().unwrap()))
    };
    let text = start_error(&settings).await;
    assert!(text.contains("store.url"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    let server = TestServer::start(Options {
        version: "1.15.4".into(),
        ..Options::default()
    });
    let text = start_error(&server_settings(&server.url())).await;
    assert!(text.contains("1.15.4") && text.contains("1.16"), "{text}");
}

#[tokio::test]
async fn a_wrong_key_is_one_clear_error() {
    let server = TestServer::start(Options {
        api_key: Some("right".into()),
        ..Options::default()
    });
    let mut settings = server_settings(&server.url());
    let text = start_error(&settings).await;
    assert!(text.contains("store.api_key"), "{text}");
    settings.api_key = ApiKey::new("wrong-and-secret");
    let text = start_error(&settings).await;
    assert!(text.contains("store.api_key"), "{text}");
    assert!(!text.contains("wrong-and-secret"), "{text}");
    settings.api_key = ApiKey::new("right");
    let store = open(&settings).await.unwrap();
    store
        .put(vec![write("a", version(0, 1, 1), "a")])
        .await
        .unwrap();
    assert!(store.fetch(id("a")).await.unwrap().is_some());
}

const TLS_CHILD: &str = "TCBERT_TEST_TLS_CHILD";

/// The other process of the test below, because the authority is named by an environment variable.
#[tokio::test]
async fn child_that_speaks_tls() {
    let Ok(url) = std::env::var(TLS_CHILD) else {
        return;
    };
    let mut settings = server_settings(&url);
    settings.api_key = ApiKey::new("right");
    match open(&settings).await {
        Ok(store) => {
            store
                .put(vec![write("a", version(0, 1, 1), "a")])
                .await
                .unwrap();
            println!(
                "outcome: {} written",
                store.count(PointFilter::default()).await.unwrap()
            );
        }
        Err(error) => println!("outcome: {error}"),
    }
}

/// TLS with a self-made authority, and a key: works where the authority is trusted, fails where not.
#[test]
fn tls_with_a_private_authority() {
    let ours = Authority::new();
    let server = TestServer::start(Options {
        api_key: Some("right".into()),
        identity: Some((ours.server_certificate, ours.server_key)),
        ..Options::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let trusted = folder.path().join("authority.pem");
    std::fs::write(&trusted, ours.certificate).unwrap();
    let other = folder.path().join("other.pem");
    std::fs::write(&other, Authority::new().certificate).unwrap();

    let outcome = |authority: &std::path::Path| {
        let output = processes::run(
            Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "store_contract::server::child_that_speaks_tls",
                    "--nocapture",
                ])
                .env(TLS_CHILD, server.url())
                .env("SSL_CERT_FILE", authority),
        );
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let outcome = output.split("outcome: ").nth(1).unwrap_or_default();
        outcome.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(outcome(&trusted), "1 written");
    let refused = outcome(&other);
    assert!(
        refused.contains("store.url") && !refused.contains("right"),
        "{refused}"
    );
}
