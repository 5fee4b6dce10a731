//! The binary as scripts and operators meet it: exit codes, messages, signals, kills.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tcbert_worker::assemble;
use tcbert_worker::kafka::EmbeddedBroker;
use tcbert_worker::store::PointFilter;

use crate::processes::{finish, signal};
use crate::support::{DEAD_LETTERS, PATIENCE, TOPIC, broker, documents, settings, wait_until};

/// Longest that a wrong configuration may take to be told.
const MESSAGE_BOUND: Duration = Duration::from_secs(30);

fn binary(variables: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tcbert-worker"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    for (key, value) in variables {
        command.env(format!("TCBERT__{key}"), value);
    }
    command
}

fn run(variables: &[(&str, &str)], arguments: &[&str], input: &[u8]) -> Output {
    let mut child = binary(variables, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = finish(child);
    // A process that ends before it has read everything closes the pipe.
    let _ = writer.join().unwrap();
    output
}

/// Runs a command that must be refused, and gives its exit code and what it said.
fn refused(variables: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let started = Instant::now();
    let output = run(variables, arguments, b"");
    let message = String::from_utf8(output.stderr).unwrap();
    let code = output.status.code().unwrap();
    assert!(
        started.elapsed() < MESSAGE_BOUND,
        "it took {:?}: {message}",
        started.elapsed()
    );
    let errors = message.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "one message, not several: {message}");
    (code, message)
}

#[test]
fn wrong_configurations_are_told_in_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store").display().to_string();
    let spool = folder.path().join("spool").display().to_string();
    let base = [
        ("STORE__KIND", "embedded"),
        ("STORE__PATH", store.as_str()),
        ("KAFKA__TOPIC", TOPIC),
        ("DEAD_LETTER__SPOOL_DIR", spool.as_str()),
    ];
    let with = |more: &[(&'static str, &'static str)], exit: i32, says: &[&str]| {
        let variables: Vec<(&str, &str)> =
            base.iter().copied().chain(more.iter().copied()).collect();
        let (code, message) = refused(&variables, &["run"]);
        assert_eq!(code, exit, "{message}");
        for part in says {
            assert!(message.contains(part), "{part:?} is missing in {message}");
        }
        assert!(!message.contains("hunter"), "{message}");
    };
    with(
        &[("KAFKA__BROKRS", "x:1")],
        2,
        &["kafka.brokrs", "kafka.brokers"],
    );
    with(
        &[("KAFKA__BROKERS", "127.0.0.1:99999")],
        2,
        &["99999", "65535"],
    );
    for (key, value) in [
        ("MODEL__BUNDLE", "no/such/bundle"),
        ("MODEL__RUNTIME_LIBRARY", "no/such/libonnxruntime.so"),
        ("MODEL__DEVICE", "cuda:0"),
        ("TAGGING__TAXONOMY", "nwes"),
        ("TAGGING__WHITENING", "no/such/whitening"),
    ] {
        with(&[(key, value)], 2, &[value]);
    }
    with(&[("KAFKA__BROKERS", "127.0.0.1:1")], 1, &["127.0.0.1:1"]);
    let server = ("STORE__KIND", "qdrant");
    with(
        &[server, ("STORE__URL", "http://127.0.0.1:1")],
        1,
        &["127.0.0.1:1", "Connection refused", "store.url"],
    );
    with(
        &[server, ("STORE__URL", "http://me:hunter2@127.0.0.1:1")],
        2,
        &["store.url", "store.api_key"],
    );
    with(
        &[server, ("STORE__API_KEY", "hunter\n2")],
        2,
        &["store.api_key", "(secret)"],
    );
    with(
        &[server, ("STORE__API_KEY_FILE", "no/such/key")],
        2,
        &["store.api_key_file", "no/such/key"],
    );
}

#[test]
fn doctor_tells_a_fresh_installation_that_it_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store").display().to_string();
    let finding = |variables: &[(&str, &str)], name: &str| {
        let base = [
            ("STORE__PATH", store.as_str()),
            ("KAFKA__BROKERS", "127.0.0.1:1"),
            ("KAFKA__CONNECT_TIMEOUT_MS", "500"),
        ];
        let output = run(&[&base[..], variables].concat(), &["doctor", "--json"], b"");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        (
            check["passed"] == true,
            check["finding"].as_str().unwrap().to_owned(),
        )
    };
    let (passed, said) = finding(&[], "store");
    assert!(passed && said.contains("first run"), "{said}");
    let (passed, said) = finding(&[("STORE__APPLY_MIGRATIONS", "false")], "store");
    assert!(!passed && said.contains("migrate apply"), "{said}");
    let (passed, said) = finding(&[("MODEL__BUNDLE", "no/such/bundle")], "store");
    assert!(!passed && said.contains("not checked"), "{said}");
    let (passed, said) = finding(&[], "broker");
    assert!(
        !passed && said.contains("kafka.brokers = 127.0.0.1:1"),
        "{said}"
    );
    assert!(said.contains("security.protocol"), "{said}");
}

#[test]
fn migrations_and_taxonomies_answer_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store").display().to_string();
    let store = [("STORE__KIND", "embedded"), ("STORE__PATH", path.as_str())];
    let answer = |arguments: &[&str]| -> Value {
        let output = run(&store, arguments, b"");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let missing = |status: &Value| status["migrations"][0]["missing"].as_array().unwrap().len();
    let before = answer(&["migrate", "status", "--json"]);
    let planned = answer(&["migrate", "plan", "--json"]);
    assert_eq!(planned["steps"].as_array().unwrap().len(), missing(&before));
    assert_eq!(answer(&["migrate", "apply", "--json"]), planned);
    let after = answer(&["migrate", "status", "--json"]);
    assert!(missing(&before) > 0 && missing(&after) == 0, "{after}");
    assert!(after["migrations"][0]["applied_at"].is_string(), "{after}");
    let names = answer(&["taxonomy", "list", "--json"]);
    assert!(
        names.as_array().unwrap().contains(&"news".into()),
        "{names}"
    );
}

#[test]
fn usage_errors_exit_with_two() {
    assert_eq!(run(&[], &["no-such-command"], b"").status.code(), Some(2));
    assert_eq!(run(&[], &["search", ""], b"").status.code(), Some(2));
    assert_eq!(
        run(&[], &["--config", "no/such.toml", "tag", "x"], b"")
            .status
            .code(),
        Some(2)
    );
    assert_eq!(run(&[], &["--help"], b"").status.code(), Some(0));
}

#[test]
fn every_hostile_line_gets_an_answer_or_an_error() {
    let long = "新闻".repeat(170_000);
    let mut lines: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"   ".to_vec(),
        b"\x00\x01\x02\x1b[31m".to_vec(),
        br"\ud800 lone surrogate".to_vec(),
        "[MASK][MASK]关于[MASK]的新闻[SEP][CLS]".as_bytes().to_vec(),
        long.into_bytes(),
        "👩‍👩‍👧‍👦🏳️‍🌈🇨🇳".as_bytes().to_vec(),
        "مرحبا بالعالم שלום नमस्ते ไทย 한국어 日本語 ﷽"
            .as_bytes()
            .to_vec(),
        b"\xff\xfe\xfd".to_vec(),
        "a".repeat(1_000_000).into_bytes(),
    ];
    for index in 0..300 {
        lines.push(format!("第{index}条：国家队公布世界杯预选赛大名单").into_bytes());
    }
    let output = run(&[], &["tag", "--json"], &lines.join(&b'\n'));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), lines.len());
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer["id"], index + 1);
        assert!(
            answer["topic"].is_string() != answer["error"].is_string(),
            "{answer}"
        );
    }
    assert!(answers[0]["error"].is_string() && answers[8]["error"].is_string());
    assert!(answers[5]["truncated"].as_bool().unwrap());
}

#[test]
fn a_literal_mask_is_text() {
    let top = |text: &str| -> Value {
        let output = run(
            &[],
            &["tag", "--json", "--top", "0", "--embedding", text],
            b"",
        );
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let literal = top("国足[MASK][MASK]赢球");
    assert!(literal["topic"].is_string());
    // As an extra or shifted mask, the special token would leave the same ids as no text at its place.
    assert_ne!(literal["embedding"], top("国足赢球")["embedding"]);
}

/// A worker of its own process; killed when a test that has failed leaves it behind.
struct Running {
    child: Child,
    log: Option<std::thread::JoinHandle<String>>,
}

impl Running {
    /// Waits for the end; gives the status and the log.
    async fn ended(&mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the worker goes on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        (status, self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_run(broker: &EmbeddedBroker, folder: &Path) -> Running {
    let (brokers, store) = (
        broker.bootstrap_servers(),
        folder.join("store").display().to_string(),
    );
    let spool = folder.join("spool").display().to_string();
    let mut child = binary(
        &[
            ("KAFKA__BROKERS", &brokers),
            ("KAFKA__TOPIC", TOPIC),
            ("KAFKA__GROUP_ID", "tests"),
            ("KAFKA__DEAD_LETTER_TOPIC", DEAD_LETTERS),
            ("KAFKA__COMMIT_INTERVAL_MS", "100"),
            ("DEAD_LETTER__SPOOL_DIR", &spool),
            ("STORE__KIND", "embedded"),
            ("STORE__PATH", &store),
            ("STORE__APPLY_MIGRATIONS", "true"),
        ],
        &["run"],
    )
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let log = std::thread::spawn(move || {
        stderr
            .lines()
            .map_while(Result::ok)
            .collect::<Vec<_>>()
            .join("\n")
    });
    Running {
        child,
        log: Some(log),
    }
}

async fn points_in(broker: &EmbeddedBroker, folder: &Path) -> u64 {
    let settings = settings(broker, folder, &[]);
    let expectation = assemble::expected_collection(&settings).unwrap();
    let store = assemble::open_store(&settings, &expectation).await.unwrap();
    let points = store.count(PointFilter::default()).await.unwrap();
    store.close().await.unwrap();
    points
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_loses_nothing_and_exits_zero() {
    let broker = broker(4);
    let folder = tempfile::tempdir().unwrap();
    broker.produce(TOPIC, documents("doc", 400)).await.unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    let committed = || broker.committed(&settings.kafka).unwrap();

    let mut running = start_run(&broker, folder.path());
    wait_until("the first commits", || committed() >= 50).await;
    signal(&running.child, "-TERM");
    let asked = Instant::now();
    let (status, log) = running.ended().await;
    assert!(status.success(), "{status:?}: {log}");
    assert!(asked.elapsed() < Duration::from_secs(30), "{log}");
    assert_eq!(
        points_in(&broker, folder.path()).await,
        u64::try_from(committed()).unwrap(),
        "{log}"
    );

    // The first run may have done all: what comes now shows that the second one works before it is told to stop.
    broker.produce(TOPIC, documents("more", 50)).await.unwrap();
    let mut running = start_run(&broker, folder.path());
    wait_until("the rest", || committed() == 450).await;
    signal(&running.child, "-INT");
    let (status, log) = running.ended().await;
    assert!(status.success(), "{status:?}: {log}");
    assert_eq!(points_in(&broker, folder.path()).await, 450);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_and_a_restart_end_with_the_same_points() {
    let broker = broker(4);
    let folder = tempfile::tempdir().unwrap();
    broker.produce(TOPIC, documents("doc", 400)).await.unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    let committed = || broker.committed(&settings.kafka).unwrap();

    let mut running = start_run(&broker, folder.path());
    wait_until("the first commits", || committed() >= 50).await;
    running.child.kill().unwrap();
    running.ended().await;
    let durable = points_in(&broker, folder.path()).await;
    assert!(
        durable >= u64::try_from(committed()).unwrap(),
        "{durable} points below what is committed"
    );

    broker.produce(TOPIC, documents("more", 50)).await.unwrap();
    let mut running = start_run(&broker, folder.path());
    wait_until("the rest", || committed() == 450).await;
    signal(&running.child, "-TERM");
    let (status, log) = running.ended().await;
    assert!(status.success(), "{status:?}: {log}");
    assert_eq!(points_in(&broker, folder.path()).await, 450);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_does_not_exist_yet_is_waited_for() {
    let broker = EmbeddedBroker::start(&[(DEAD_LETTERS, 1)]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut running = start_run(&broker, folder.path());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        running.child.try_wait().unwrap().is_none(),
        "the worker waits"
    );
    broker.create_topic(TOPIC, 2).unwrap();
    broker.produce(TOPIC, documents("doc", 20)).await.unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    wait_until("the documents", || {
        broker.committed(&settings.kafka).unwrap_or(0) == 20
    })
    .await;
    signal(&running.child, "-TERM");
    let (status, log) = running.ended().await;
    assert!(status.success(), "{status:?}: {log}");
    assert!(log.contains(TOPIC), "the log names the topic: {log}");
}
