//! The ground of the fault matrix: worker processes over Apache Kafka and a Qdrant server for tests, a
//! ledger of what was produced, and one line of the table for each run.
//!
//! `make test` runs it with few records and short faults, `TCBERT_SOAK=1` (`make soak`) with 20,000 records
//! and long ones.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tcbert_worker::assemble;
use tcbert_worker::kafka::{KafkaSettings, SampleProducer, group_positions};
use tcbert_worker::settings::{Origins, Settings};
use tcbert_worker::store::Store;

use crate::apache_kafka::{self, ApacheKafka, unique};
use crate::ledger::{Ledger, MAX_VALUE_BYTES};
use crate::processes::signal;
use crate::proxy::Proxy;
use crate::qdrant_server::TestServer;

const PARTITIONS: i32 = 12;
/// Longest that the last record may take once the fault is over.
const SETTLE_WITHIN: Duration = Duration::from_secs(120);
/// Records produced at once.
const CHUNK: usize = 50;
/// How often the committed offsets are held against the store.
const LOOK_EVERY: Duration = Duration::from_millis(400);

pub fn is_soak() -> bool {
    std::env::var_os("TCBERT_SOAK").is_some()
}

/// `short` in `make test`, `long` in `make soak`.
pub fn sized<T>(short: T, long: T) -> T {
    if is_soak() { long } else { short }
}

/// Heavy as they are, faults run one at a time, whatever the harness does.
pub static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The place of one run.
pub struct Field {
    name: &'static str,
    variables: Vec<(String, String)>,
    pub kafka: KafkaSettings,
    pub store: Arc<dyn Store>,
    folder: tempfile::TempDir,
    started: usize,
    pub workers: Vec<Worker>,
}

pub struct Worker {
    pub child: Child,
    log: std::path::PathBuf,
}

impl Worker {
    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for its end; gives its status and all that it said.
    pub async fn ended(mut self, within: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.log());
            }
            assert!(Instant::now() < deadline, "it goes on: {}", self.log());
            pause(0.05).await;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Field {
    /// `kafka` and `qdrant` are where the workers are to find them; the checker goes to `server`
    /// and `cluster` themselves.
    pub async fn new(
        name: &'static str,
        cluster: &ApacheKafka,
        server: &TestServer,
        through: (Option<&str>, Option<&str>),
        more: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let topic = unique(name);
        let dead = format!("{topic}-dead");
        cluster.create_topic(&topic, PARTITIONS, &[]);
        cluster.create_topic(&dead, 1, &[]);
        let spool = folder.path().join("spool").display().to_string();
        let max_value = MAX_VALUE_BYTES.to_string();
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
        let bundle = tests.join("tiny").display().to_string();
        let taxonomy = tests.join("taxonomies/single.toml").display().to_string();
        let url = server.url();
        let base = [
            ("KAFKA__BROKERS", cluster.bootstrap_servers()),
            ("KAFKA__TOPIC", &topic),
            ("KAFKA__GROUP_ID", &topic),
            ("KAFKA__DEAD_LETTER_TOPIC", &dead),
            ("DEAD_LETTER__SPOOL_DIR", &spool),
            ("DECODE__MAX_VALUE_BYTES", &max_value),
            ("STORE__KIND", "qdrant"),
            ("STORE__URL", &url),
            ("STORE__APPLY_MIGRATIONS", "true"),
            ("STORE__TIMEOUT_MS", "3000"),
            ("MODEL__BUNDLE", &bundle),
            ("MODEL__SESSIONS", "1"),
            ("MODEL__THREADS", "1"),
            ("TAGGING__TAXONOMY", &taxonomy),
        ];
        let variables: Vec<(String, String)> = base
            .iter()
            .chain(more)
            .map(|(key, value)| (format!("TCBERT__{key}"), (*value).to_owned()))
            .collect();
        let origins = Origins {
            file: None,
            variables: variables.clone(),
            ..Origins::default()
        };
        let settings = Settings::load(&origins).unwrap();
        let expectation = assemble::expected_collection(&settings).unwrap();
        let store = assemble::open_store_for_run(&settings, &expectation)
            .await
            .unwrap();
        let mut field = Self {
            name,
            variables,
            kafka: settings.kafka.clone(),
            store,
            folder,
            started: 0,
            workers: Vec::new(),
        };
        let through = [("KAFKA__BROKERS", through.0), ("STORE__URL", through.1)];
        for (key, address) in through {
            if let Some(address) = address {
                field
                    .variables
                    .push((format!("TCBERT__{key}"), address.to_owned()));
            }
        }
        field
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::new(&self.kafka.topic, PARTITIONS, 7)
    }

    pub fn start_worker(&mut self) {
        self.start_worker_with(&[]);
    }

    /// Starts a worker that is set up differently from the others.
    pub fn start_worker_with(&mut self, more: &[(&str, &str)]) {
        self.started += 1;
        let more = more
            .iter()
            .map(|(key, value)| (format!("TCBERT__{key}"), *value));
        let log = self
            .folder
            .path()
            .join(format!("worker-{}.log", self.started));
        let output = File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tcbert-worker"))
            .arg("run")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .envs(self.variables.iter().cloned())
            .envs(more)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        self.workers.push(Worker { child, log });
    }

    /// Ends a worker as `kill -9` does.
    pub fn kill(&mut self, index: usize) {
        drop(self.workers.remove(index));
    }

    /// Starts a worker for each that has ended, as whatever runs them does.
    pub fn restart_ended(&mut self) {
        let before = self.workers.len();
        self.workers
            .retain_mut(|worker| worker.child.try_wait().unwrap().is_none());
        for _ in self.workers.len()..before {
            self.start_worker();
        }
    }

    /// What the group has committed, by partition.
    pub async fn committed(&self) -> Vec<i64> {
        let settings = self.kafka.clone();
        let asked = tokio::task::spawn_blocking(move || {
            // A group that is new to a cluster has no coordinator yet.
            (0..50).find_map(|_| {
                let answer = group_positions(&settings).ok();
                if answer.is_none() {
                    std::thread::sleep(Duration::from_millis(200));
                }
                answer
            })
        });
        let mut committed = vec![0; usize::try_from(PARTITIONS).unwrap()];
        for position in asked.await.unwrap().expect("the committed offsets") {
            let number = usize::try_from(position.partition.partition).unwrap();
            committed[number] = position.committed.unwrap_or(0);
        }
        committed
    }

    /// Panics with its log where a worker has ended that nobody killed.
    pub fn check_workers(&mut self) {
        for worker in &mut self.workers {
            if let Some(status) = worker.child.try_wait().unwrap() {
                let log = worker.log();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(30)..].join("\n");
                panic!("{}: a worker ended with {status}:\n{tail}", self.name);
            }
        }
    }
}

/// One line of the table.
struct Outcome {
    records: usize,
    /// From the end of the fault to the next commit, and to the last.
    recovered: Duration,
    settled: Duration,
    repeated_letters: usize,
}

/// Produces `records` spread over so many seconds while `fault` is going on, and holds what is
/// committed against what is durable all the time; then waits for the rest and compares everything.
pub async fn run<F>(field: &mut Field, (records, seconds): (usize, u64), fault: F)
where
    F: AsyncFnOnce(&mut Field),
{
    let mut ledger = field.ledger();
    let chunks: Vec<_> = (0..records.div_ceil(CHUNK))
        .map(|_| ledger.draw(CHUNK))
        .collect();
    let step = Duration::from_secs(seconds) / u32::try_from(chunks.len()).unwrap();
    let producing = {
        let kafka = field.kafka.clone();
        tokio::task::spawn_blocking(move || {
            let properties = [("enable.idempotence", "true")];
            let producer = SampleProducer::with_properties(&kafka.brokers, &properties).unwrap();
            let mut due = Instant::now();
            for chunk in chunks {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                due += step;
                producer.produce(&kafka.topic, &chunk).unwrap();
            }
        })
    };
    let over = Arc::new(AtomicBool::new(false));
    let watching = {
        let (kafka, store, over) = (
            field.kafka.clone(),
            Arc::clone(&field.store),
            Arc::clone(&over),
        );
        let all = ledger.len();
        tokio::spawn(async move {
            let (mut ended, mut recovered) = (None, None);
            loop {
                let before = ledger.look(&kafka, &store).await;
                assert!(
                    before.1.is_empty(),
                    "committed but not durable: {:?}",
                    before.1
                );
                if ended.is_none() && over.load(Ordering::Acquire) {
                    ended = Some((Instant::now(), before.0));
                }
                if let Some((at, done)) = ended {
                    if recovered.is_none() && (before.0 > done || done == all) {
                        recovered = Some(at.elapsed());
                    }
                    if before.0 >= all {
                        return (ledger, recovered.unwrap_or_default(), at.elapsed());
                    }
                    assert!(
                        at.elapsed() < SETTLE_WITHIN,
                        "{} of {all} committed long after the fault",
                        before.0
                    );
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        })
    };
    fault(field).await;
    over.store(true, Ordering::Release);
    producing.await.unwrap();
    let watched = watching.await;
    field.check_workers();
    let (ledger, recovered, settled) = watched.unwrap();
    let verdict = ledger.verify(&field.kafka, &field.store).await;
    assert!(verdict.holds(), "{}: {verdict:?}", field.name);
    let outcome = Outcome {
        records: ledger.len(),
        recovered,
        settled,
        repeated_letters: verdict.repeated_letters,
    };
    say(field.name, &outcome);
}

fn say(fault: &str, outcome: &Outcome) {
    println!(
        "| {fault} | {} records | recovered in {:.1} s | all done in {:.1} s | lost 0 | stale 0 | unaccounted 0 | \
         letters repeated {} |",
        outcome.records,
        outcome.recovered.as_secs_f64(),
        outcome.settled.as_secs_f64(),
        outcome.repeated_letters
    );
}

/// Waits until `done`; panics where that takes too long.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SETTLE_WITHIN;
    while !done().await {
        assert!(Instant::now() < deadline, "not reached: {what}");
        pause(0.05).await;
    }
}

pub async fn pause(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

pub async fn shared(test: &'static str) -> Option<&'static ApacheKafka> {
    tokio::task::spawn_blocking(move || apache_kafka::shared(test))
        .await
        .unwrap()
}

pub async fn own(test: &'static str, brokers: usize) -> Option<ApacheKafka> {
    let start = move || apache_kafka::own(test, brokers, &[]);
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// A cluster that is reached through a proxy alone.
pub async fn behind(
    test: &'static str,
    properties: &[(&str, &str)],
    proxy: &Proxy,
) -> Option<ApacheKafka> {
    let properties: Vec<(String, String)> = properties
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect();
    let proxy = proxy.clone();
    tokio::task::spawn_blocking(move || {
        let borrowed: Vec<(&str, &str)> = properties
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        apache_kafka::own_behind(test, &borrowed, |address| proxy.forward_to(address))
    })
    .await
    .unwrap()
}
