//! What operators do beside a running worker: dead letters, whitening, health, lag, old markers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use tcbert_worker::document::{DocumentId, RecordPosition, TopicPartition, Version};
use tcbert_worker::kafka::SampleRecord;
use tcbert_worker::store::PointWrite;
use tcbert_worker::store::upkeep::remove_expired_markers;

use crate::backfill::Ground;
use crate::processes::{self, finish, signal};
use crate::support::{Put, Worker, documents, wait_until};

fn json_of(output: &std::process::Output) -> Value {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_and_sent_home() {
    let ground = Ground::new(1);
    let empty = ground.run(&["dead-letters", "list"]);
    assert!(String::from_utf8_lossy(&empty.stdout).contains("no dead letters"));
    ground.produce(&[
        SampleRecord::new("broken", "{not json"),
        SampleRecord::new("blank", r#"{"id":"blank","title":" "}"#),
    ]);
    ground.produce(&documents("doc", 3));
    let worker = Worker::start_with(&ground.settings(), ground.store().await).await;
    worker.wait_for(5).await;
    worker.stop().await;

    let table = ground.run(&["dead-letters", "list"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.contains("invalid_json") && table.contains("documents[0]@0"),
        "{table}"
    );
    let listed = ground.run(&["dead-letters", "list", "--json", "--key", "broken"]);
    let letter = json_of(&listed);
    assert_eq!(letter["value"], "{not json");
    assert_eq!(
        letter["from"],
        json!({ "topic": "documents", "partition": 0, "offset": 0 })
    );
    assert_eq!(letter["stage"], "decode");

    let filter = [
        "dead-letters",
        "replay",
        "--json",
        "--class",
        "invalid_json",
    ];
    let dry = json_of(&ground.run(&[&filter[..], &["--dry-run"]].concat()));
    assert_eq!((&dry["wanted"], &dry["sent"]), (&json!(1), &json!(0)));
    let sent = json_of(&ground.run(&filter));
    assert_eq!((&sent["wanted"], &sent["sent"]), (&json!(1), &json!(1)));
    // It is read again, refused again, and becomes a second letter.
    let worker = Worker::start_with(&ground.settings(), ground.store().await).await;
    worker.wait_for(1).await;
    assert_eq!(worker.stop().await.dead_lettered, 1);
}

#[test]
fn a_whitening_is_fitted_shown_and_used() {
    let ground = Ground::new(1);
    let texts: Vec<String> = (0..40)
        .map(|n| format!("第{n}届电影节开幕，第{}部影片入围主竞赛单元", n * 7 % 11))
        .collect();
    let plain = ground.write("sample.txt", texts.join("\n"));
    let lines: Vec<String> = (0..20)
        .map(|n| json!({ "id": n.to_string(), "title": format!("股市今日上涨{n}点") }).to_string())
        .collect();
    let records = ground.write("sample.jsonl", format!("{}\n{{broken\n", lines.join("\n")));
    let file = ground.folder.path().join("whitening.bin");
    let file = file.to_str().unwrap();
    let fit = [
        "whiten", "fit", "--json", "--output", file, "--data", &plain, &records,
    ];
    let fitted = json_of(&ground.run(&[&fit[..], &["--shrinkage", "0.3"]].concat()));
    assert_eq!(fitted["documents"], 60);
    assert_eq!(fitted["left_out"], 1);
    assert_eq!(fitted["dimensions"], 256);
    let shown = json_of(&ground.run(&["whiten", "show", file, "--json"]));
    for key in [
        "fingerprint",
        "embedding_fingerprint",
        "dimensions",
        "documents",
        "shrinkage",
    ] {
        assert_eq!(shown[key], fitted[key], "{key}");
    }

    let embedding = |whitening: &str| {
        let mut command = ground.command(&["tag", "--json", "--embedding", "新款电动汽车上市"]);
        command.env("TCBERT__TAGGING__WHITENING", whitening);
        json_of(&processes::run(&mut command))["embedding"].clone()
    };
    assert_ne!(embedding(file), embedding(""));
    // Without shrinkage sixty documents cannot tell 256 directions apart.
    let flat = ground.run(&fit);
    assert_eq!(flat.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&flat.stderr).contains("larger shrinkage"));
}

pub fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

pub fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_not_ready_while_the_store_is_away_and_tells_its_lag() {
    let mut ground = Ground::new(1);
    let port = free_port();
    let mut command = ground.command(&["run"]);
    command.env("TCBERT__ADMIN__LISTEN", format!("127.0.0.1:{port}"));
    let run = command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let answers =
        |path: &str, wanted: &str| get(port, path).is_some_and(|got| got.contains(wanted));
    wait_until("ready", || answers("/readyz", " 200 ")).await;
    ground.produce(&documents("doc", 5));
    let settings = ground.settings();
    wait_until("the first documents", || {
        ground.broker.committed(&settings.kafka).unwrap() == 5
    })
    .await;

    ground.server.stop();
    ground.produce(&documents("more", 200));
    wait_until("not ready", || answers("/readyz", " 503 ")).await;
    assert!(
        answers("/readyz", "wait for the store"),
        "{:?}",
        get(port, "/readyz")
    );
    assert!(
        answers("/healthz", " 200 "),
        "an outage of the store is no reason to start anew"
    );
    let lag = || {
        let metrics = get(port, "/metrics").unwrap_or_default();
        let line = metrics.lines().find_map(|line| {
            line.strip_prefix(r#"tcbert_lag_records{topic="documents",partition="0"} "#)
        });
        line.and_then(|records| records.trim().parse::<u64>().ok())
    };
    // What the worker has taken and cannot write is behind as well.
    wait_until("the lag", || lag() == Some(200)).await;
    assert!(answers("/metrics", "tcbert_well{part=\"store\"} 0"));
    assert!(answers("/metrics", "tcbert_well{part=\"broker\"} 1"));
    // Its line of help begins like the series at one.
    assert!(answers("/metrics", "\ntcbert_store_paused 1\n"));

    ground.server.resume();
    wait_until("ready again", || answers("/readyz", " 200 ")).await;
    wait_until("no lag", || lag() == Some(0)).await;
    for moved in [
        "tcbert_stage_seconds_count{stage=\"end_to_end\"} 205",
        "tcbert_documents_total{outcome=\"written\"} 205",
        "\ntcbert_store_paused 0\n",
        "tcbert_commit_failures_total 0",
        "tcbert_rebalances_total{kind=\"assigned\"} 1",
    ] {
        assert!(
            answers("/metrics", moved),
            "{moved}: {:?}",
            get(port, "/metrics")
        );
    }
    let metrics = get(port, "/metrics").unwrap_or_default();
    for stage in [
        "decode", "tokenise", "batch", "infer", "score", "write", "commit",
    ] {
        let never = format!("tcbert_stage_seconds_count{{stage=\"{stage}\"}} 0");
        assert!(!metrics.contains(&never), "{metrics}");
    }
    signal(&run, "-TERM");
    assert!(finish(run).status.success());
    assert_eq!(ground.points().await, 205);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn markers_of_deletions_go_once_they_have_served() {
    let ground = Ground::new(1);
    let store = ground.store().await;
    let now = jiff::Timestamp::now();
    let marker = |id: &str, hours_ago: i64| PointWrite::Tombstone {
        id: DocumentId::new(id).unwrap(),
        version: Version {
            position: RecordPosition {
                partition: TopicPartition::new("documents", 0),
                offset: hours_ago,
            },
            timestamp_ms: 1,
            order: 0,
        },
        deleted_at: now
            .checked_sub(jiff::SignedDuration::from_hours(hours_ago))
            .unwrap(),
    };
    store
        .put(vec![marker("old", 3), marker("young", 1)])
        .await
        .unwrap();
    let removing = {
        let store = store.clone();
        let (retention, interval) = (Duration::from_secs(2 * 3600), Duration::from_millis(50));
        tokio::spawn(async move {
            remove_expired_markers(store.as_ref(), retention, interval).await;
        })
    };
    let is_there = |id: &'static str| {
        let store = store.clone();
        async move {
            let id = DocumentId::new(id).unwrap();
            store.fetch(id).await.unwrap().is_some()
        }
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while is_there("old").await {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(is_there("young").await);
    removing.abort();
}
