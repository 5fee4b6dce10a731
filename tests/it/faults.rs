//! The fault matrix over real processes: the binary's workers, Apache Kafka, a Qdrant server for
//! tests, and a ledger that says whether anything is missing, stale or made up.
//!
//! `make test` runs it with few records and short faults, `TCBERT_SOAK=1` (`make soak`) with
//! 20,000 records and long ones. Each run prints one line of the table.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tcbert_worker::assemble;
use tcbert_worker::kafka::{KafkaSettings, SampleProducer};
use tcbert_worker::settings::{Origins, Settings};
use tcbert_worker::source::CommitMode;
use tcbert_worker::store::Store;

use crate::apache_kafka::{self, ApacheKafka, unique};
use crate::kafka_reader::Reader;
use crate::ledger::{Ledger, MAX_VALUE_BYTES};
use crate::proxy::Proxy;
use crate::qdrant_server::{Fault, Options, TestServer};

const PARTITIONS: i32 = 12;
/// Longest that the last record may take once the fault is over.
const SETTLE_WITHIN: Duration = Duration::from_secs(120);
/// Records produced at once.
const CHUNK: usize = 50;
/// How often the committed offsets are held against the store.
const LOOK_EVERY: Duration = Duration::from_millis(400);

fn is_soak() -> bool {
    std::env::var_os("TCBERT_SOAK").is_some()
}

/// `short` in `make test`, `long` in `make soak`.
fn sized<T>(short: T, long: T) -> T {
    if is_soak() { long } else { short }
}

/// Heavy as they are, faults run one at a time, whatever the harness does.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The place of one run.
struct Field {
    name: &'static str,
    variables: Vec<(String, String)>,
    kafka: KafkaSettings,
    store: Arc<dyn Store>,
    folder: tempfile::TempDir,
    started: usize,
    workers: Vec<Worker>,
}

struct Worker {
    child: Child,
    log: std::path::PathBuf,
}

impl Worker {
    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
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
    async fn new(
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

    fn ledger(&self) -> Ledger {
        Ledger::new(&self.kafka.topic, PARTITIONS, 7)
    }

    fn start_worker(&mut self) {
        self.started += 1;
        let log = self
            .folder
            .path()
            .join(format!("worker-{}.log", self.started));
        let child = Command::new(env!("CARGO_BIN_EXE_tcbert-worker"))
            .arg("run")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        self.workers.push(Worker { child, log });
    }

    /// Panics with its log where a worker has ended that nobody killed.
    fn check_workers(&mut self) {
        for worker in &mut self.workers {
            if let Some(status) = worker.child.try_wait().unwrap() {
                let log = std::fs::read_to_string(&worker.log).unwrap_or_default();
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
async fn run<F>(field: &mut Field, (records, seconds): (usize, u64), fault: F)
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

async fn pause(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_are_killed_lose_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("workers_that_are_killed_lose_nothing").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("killed", cluster, &server, (None, None), &[]).await;
    for _ in 0..3 {
        field.start_worker();
    }
    run(
        &mut field,
        sized((3_000, 16), (20_000, 125)),
        async |field| {
            for round in 0..sized(3, 24) {
                pause(5.0).await;
                let victim = round % field.workers.len();
                field.check_workers();
                drop(field.workers.remove(victim));
                field.start_worker();
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_come_and_go_lose_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("workers_that_come_and_go_lose_nothing").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("joining", cluster, &server, (None, None), &[]).await;
    field.start_worker();
    run(
        &mut field,
        sized((3_000, 10), (20_000, 50)),
        async |field| {
            for _ in 0..sized(2, 12) {
                field.start_worker();
                pause(3.0).await;
                let mut leaver = field.workers.remove(0);
                leaver.signal("-TERM");
                let status = tokio::task::spawn_blocking(move || leaver.child.wait().unwrap());
                assert!(
                    status.await.unwrap().success(),
                    "it leaves with exit code 0"
                );
            }
        },
    )
    .await;
}

/// A process that stands still beyond every bound and wakes up with work of long ago in its hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_overwrites_nothing_newer() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("a_frozen_worker_overwrites_nothing_newer").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let bounds = [
        ("KAFKA__SESSION_TIMEOUT_MS", "6000"),
        ("KAFKA__MAX_POLL_INTERVAL_MS", "10000"),
        ("KAFKA__REVOKE_DRAIN_MS", "5000"),
    ];
    let mut field = Field::new("frozen", cluster, &server, (None, None), &bounds).await;
    field.start_worker();
    field.start_worker();
    run(
        &mut field,
        sized((3_000, 20), (20_000, 60)),
        async |field| {
            for _ in 0..sized(1, 3) {
                pause(4.0).await;
                field.workers[0].signal("-STOP");
                pause(14.0).await;
                field.workers[0].signal("-CONT");
                pause(2.0).await;
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = own("a_broker_that_is_killed_loses_nothing", 1).await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("broker", &cluster, &server, (None, None), &[]).await;
    field.start_worker();
    field.start_worker();
    run(&mut field, sized((3_000, 12), (20_000, 60)), async |_| {
        for _ in 0..sized(1, 3) {
            pause(4.0).await;
            cluster.kill_broker(1);
            pause(5.0).await;
            cluster.start_broker(1);
            pause(sized(0.0, 10.0)).await;
        }
    })
    .await;
}

/// Leaders of partitions and the coordinator of the group move with every broker that goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_and_coordinators_that_move_lose_nothing() {
    if !is_soak() {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = own("leaders_and_coordinators_that_move_lose_nothing", 3).await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("leaders", &cluster, &server, (None, None), &[]).await;
    field.start_worker();
    field.start_worker();
    run(&mut field, (20_000, 110), async |_| {
        for broker in [1, 2, 3, 1] {
            pause(4.0).await;
            cluster.kill_broker(broker);
            pause(8.0).await;
            cluster.start_broker(broker);
            // The next one goes only once this one is back, or no quorum would be left.
            pause(15.0).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_in_every_way_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("a_store_that_fails_in_every_way_loses_nothing").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("store", cluster, &server, (None, None), &[]).await;
    field.start_worker();
    field.start_worker();
    // The checker's own questions are reads, which no fault concerns.
    run(&mut field, sized((3_000, 16), (20_000, 120)), async |_| {
        for round in 0..sized(1, 3) {
            server.faults().random(Some((round, 0.5)));
            pause(sized(4.0, 15.0)).await;
            server.faults().random(None);
            server.faults().always(Some(Fault::DiskFull));
            pause(sized(3.0, 10.0)).await;
            server.faults().always(Some(Fault::UnknownOutcome));
            pause(sized(2.0, 5.0)).await;
            // Beyond the store's timeout of these workers.
            server
                .faults()
                .always(Some(Fault::Slow(Duration::from_secs(4))));
            pause(sized(5.0, 10.0)).await;
            server.faults().always(None);
        }
    })
    .await;
    assert!(server.faults().served() > 10, "faults happened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_swallows_everything_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    // The broker itself must name the proxy as its address, so it needs a cluster of its own.
    let broker_proxy = Proxy::reserve();
    let advertised = format!("CLIENT://{}", broker_proxy.address());
    let properties = [("advertised.listeners", advertised.as_str())];
    let Some(cluster) = behind(
        "a_network_that_swallows_everything",
        &properties,
        &broker_proxy,
    )
    .await
    else {
        return;
    };
    let server = TestServer::start(Options::default());
    let store_proxy = Proxy::reserve();
    store_proxy.forward_to(server.url().trim_start_matches("http://"));
    let url = format!("http://{}", store_proxy.address());
    let through = (Some(broker_proxy.address()), Some(url.as_str()));
    let mut field = Field::new("network", &cluster, &server, through, &[]).await;
    field.start_worker();
    field.start_worker();
    run(&mut field, sized((3_000, 25), (20_000, 170)), async |_| {
        for _ in 0..sized(1, 3) {
            pause(4.0).await;
            store_proxy.swallow(true);
            pause(sized(6.0, 25.0)).await;
            store_proxy.swallow(false);
            pause(3.0).await;
            broker_proxy.swallow(true);
            // Longer than the session: the partitions are lost and taken again.
            pause(sized(12.0, 25.0)).await;
            broker_proxy.swallow(false);
        }
    })
    .await;
}

/// The checker is worth something only if it notices: a worker that commits before it writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_notices_a_commit_before_the_write() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("the_checker_notices_a_commit_before_the_write").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let field = Field::new("early", cluster, &server, (None, None), &[]).await;
    let mut ledger = field.ledger();
    let records = ledger.draw(500);
    let kafka = field.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let producer = SampleProducer::new(&kafka.brokers).unwrap();
        producer.produce(&kafka.topic, &records).unwrap();
        // Acknowledges what it is given at once, writes nothing, commits, and is gone.
        let mut reader = Reader::start(&kafka);
        reader.read_all(500);
        reader.commit(CommitMode::Wait).unwrap();
    })
    .await
    .unwrap();
    let (committed, ahead) = ledger.look(&field.kafka, &field.store).await;
    assert_eq!(committed, 500);
    assert_eq!(
        ahead.len(),
        500,
        "every record is committed and none is durable"
    );
    let verdict = ledger.verify(&field.kafka, &field.store).await;
    assert!(!verdict.holds() && !verdict.lost.is_empty());
}

async fn shared(test: &'static str) -> Option<&'static ApacheKafka> {
    tokio::task::spawn_blocking(move || apache_kafka::shared(test))
        .await
        .unwrap()
}

async fn own(test: &'static str, brokers: usize) -> Option<ApacheKafka> {
    let start = move || apache_kafka::own(test, brokers, &[]);
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// A cluster that is reached through a proxy alone.
async fn behind(
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
