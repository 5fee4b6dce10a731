//! `backfill` as a scheduler meets it: the binary over librdkafka's mock cluster and a Qdrant server,
//! ended by itself, killed, started again, shared, and beside a live worker. Ranges by time and gaps
//! at their end are tested against Apache Kafka in `kafka_real`.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tcbert_worker::assemble;
use tcbert_worker::kafka::{EmbeddedBroker, LagWatch, SampleProducer, SampleRecord};
use tcbert_worker::settings::Settings;
use tcbert_worker::store::{PointFilter, Store};

use crate::apache_kafka;
use crate::processes::{self, PROCESS_PATIENCE, finish, signal};
use crate::qdrant_server::{Fault, Options, TestServer};
use crate::support::{
    DEAD_LETTERS, TOPIC, Worker, broker, document, documents, settings, titles, wait_until,
};

/// Records in flight that the workers of these tests may have.
const IN_FLIGHT: usize = 32;

/// A broker, a store and a folder that several processes share.
pub struct Ground {
    pub broker: EmbeddedBroker,
    pub server: TestServer,
    pub folder: tempfile::TempDir,
    /// Settings of its commands beside the usual ones.
    more: Vec<(&'static str, String)>,
}

impl Ground {
    pub fn new(partitions: i32) -> Self {
        Self {
            broker: broker(partitions),
            server: TestServer::start(Options::default()),
            folder: tempfile::tempdir().unwrap(),
            more: Vec::new(),
        }
    }

    /// From now on its commands have this setting.
    pub fn set(&mut self, key: &'static str, value: &str) {
        self.more.retain(|(known, _)| *known != key);
        self.more.push((key, value.to_owned()));
    }

    /// A setting that [`set`](Self::set) has changed.
    pub fn setting(&self, key: &str) -> Option<&str> {
        let mut known = self.more.iter();
        known.find_map(|(name, value)| (*name == key).then_some(value.as_str()))
    }

    pub fn produce(&self, records: &[SampleRecord]) {
        SampleProducer::new(&self.broker.bootstrap_servers())
            .unwrap()
            .produce(TOPIC, records)
            .unwrap();
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let folder = |name: &str| self.folder.path().join(name).display().to_string();
        vec![
            ("KAFKA__BROKERS", self.broker.bootstrap_servers()),
            ("KAFKA__TOPIC", TOPIC.to_owned()),
            ("KAFKA__GROUP_ID", "tests".to_owned()),
            ("KAFKA__DEAD_LETTER_TOPIC", DEAD_LETTERS.to_owned()),
            ("KAFKA__COMMIT_INTERVAL_MS", "50".to_owned()),
            ("KAFKA__SESSION_TIMEOUT_MS", "6000".to_owned()),
            ("DEAD_LETTER__SPOOL_DIR", folder("spool")),
            ("BACKFILL__STATE_DIR", folder("state")),
            ("PIPELINE__MAX_IN_FLIGHT_RECORDS", IN_FLIGHT.to_string()),
            ("STORE__KIND", "qdrant".to_owned()),
            ("STORE__URL", self.server.url()),
            ("MODEL__SESSIONS", "1".to_owned()),
            ("MODEL__THREADS", "1".to_owned()),
        ]
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tcbert-worker"));
        command
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (key, value) in self.variables().iter().chain(&self.more) {
            command.env(format!("TCBERT__{key}"), value);
        }
        command
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        processes::run_within(&mut self.command(arguments), patience())
    }

    /// Runs a backfill that is to end well, and gives its report.
    fn backfill(&self, arguments: &[&str]) -> Value {
        let arguments = [&["backfill", "--json"], arguments].concat();
        report(&self.run(&arguments))
    }

    pub fn settings(&self) -> Settings {
        let url = self.server.url();
        let overrides = [("STORE__KIND", "qdrant"), ("STORE__URL", url.as_str())];
        settings(&self.broker, self.folder.path(), &overrides)
    }

    pub async fn store(&self) -> Arc<dyn Store> {
        let settings = self.settings();
        let expectation = assemble::expected_collection(&settings).unwrap();
        assemble::open_store_for_run(&settings, &expectation)
            .await
            .unwrap()
    }

    pub async fn points(&self) -> u64 {
        let store = self.store().await;
        store.count(PointFilter::default()).await.unwrap()
    }
}

/// Documents of the long backfill: TCBERT_TEST_BACKFILL_DOCUMENTS asks for more than a test of every day takes.
fn wanted_documents() -> u64 {
    std::env::var("TCBERT_TEST_BACKFILL_DOCUMENTS")
        .map_or(400, |documents| documents.parse().unwrap())
}

/// Longest that one run may take.
fn patience() -> Duration {
    PROCESS_PATIENCE + Duration::from_secs(wanted_documents() / 20)
}

fn report(output: &Output) -> Value {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {log}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["finished"], true, "{report} {log}");
    report
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

const ALL: [&str; 2] = ["--offsets", "0:..,1:..,2:.."];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_ends_by_itself_while_producers_go_on_and_leaves_the_live_group_alone() {
    let ground = Ground::new(3);
    ground.produce(&documents("doc", 150));
    let over = Arc::new(AtomicBool::new(false));
    let producing = {
        let (over, servers) = (Arc::clone(&over), ground.broker.bootstrap_servers());
        std::thread::spawn(move || {
            let producer = SampleProducer::new(&servers).unwrap();
            let mut count = 0;
            while !over.load(Ordering::Acquire) {
                let more = documents(&format!("later-{count}"), 20);
                producer.produce(TOPIC, &more).unwrap();
                count += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            count * 20
        })
    };
    let report = ground.backfill(&ALL);
    over.store(true, Ordering::Release);
    let later = producing.join().unwrap();

    let wanted = number(&report["source"]["offsets"]);
    assert!(wanted >= 150 && wanted < 150 + later, "{wanted} {later}");
    assert_eq!(number(&report["delivered"]), wanted, "{report}");
    assert_eq!(number(&report["written"]), wanted);
    assert_eq!(
        report["source"]["offsets_done"],
        report["source"]["offsets"]
    );
    assert_eq!(ground.points().await, wanted);
    let settings = ground.settings();
    assert_eq!(ground.broker.committed(&settings.kafka).unwrap(), 0);
    let group = report["source"]["group"].as_str().unwrap();
    assert!(group.starts_with("tests.backfill."), "{group}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_backfill_goes_on_where_it_was_and_a_finished_one_begins_anew() {
    let total = wanted_documents();
    let ground = Ground::new(3);
    ground.produce(&documents("doc", usize::try_from(total).unwrap()));
    // At a bounded rate: what is done twice is what becomes durable between a commit and the kill, and that the machine
    // may be busy with other tests must not decide how much that is.
    let slowly = ["--max-docs-per-second", "100"];
    let mut first = ground.spawn(&[&["backfill"], &ALL[..], &slowly[..]].concat());
    let store = ground.store().await;
    let deadline = Instant::now() + patience();
    while store.count(PointFilter::default()).await.unwrap() < total / 3 {
        assert!(first.try_wait().unwrap().is_none(), "it ended too early");
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let before = store.count(PointFilter::default()).await.unwrap();

    // What is produced in between belongs to no run of this job.
    ground.produce(&documents("later", 50));
    let second = ground.backfill(&ALL);
    assert_eq!(second["resumed"], true, "{second}");
    assert_eq!(number(&second["source"]["offsets"]), total);
    let again = before + number(&second["delivered"]) - total;
    println!("{again} of {total} documents were done twice");
    // In flight, and what became durable within one interval of commits and one look at the store.
    assert!(again <= 4 * IN_FLIGHT as u64, "{again} were done twice");
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), total);

    let once = ground.backfill(&[&ALL[..], &["--once"]].concat());
    assert_eq!(once["already_finished"], true);
    let third = ground.backfill(&ALL);
    assert_eq!(third["resumed"], false, "{third}");
    assert_eq!(number(&third["delivered"]), total + 50, "it began anew");
    let other_name = ground.backfill(&["--offsets", "1:..5", "--job", "other"]);
    assert_eq!(number(&other_name["delivered"]), 5);
}

#[test]
fn a_day_of_apache_kafka_is_tagged_again() {
    let Some(kafka) = apache_kafka::shared("a_day_of_apache_kafka_is_tagged_again") else {
        return;
    };
    let ground = Ground::new(1);
    let topic = apache_kafka::unique("news");
    kafka.create_topic(&topic, 3, &[]);
    let dead_letters = format!("{topic}-dead");
    kafka.create_topic(&dead_letters, 1, &[]);
    let day: jiff::Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
    let hour_ms = 3_600_000;
    // An hour apart, from a day before to a day after.
    let hourly: Vec<SampleRecord> = documents("doc", 72)
        .into_iter()
        .zip(-24i64..)
        .map(|(record, hour)| record.at(day.as_millisecond() + hour * hour_ms))
        .collect();
    SampleProducer::new(kafka.bootstrap_servers())
        .unwrap()
        .produce(&topic, &hourly)
        .unwrap();
    let run = |arguments: &[&str]| {
        let mut command = ground.command(&[&["backfill", "--json"], arguments].concat());
        command
            .env("TCBERT__KAFKA__BROKERS", kafka.bootstrap_servers())
            .env("TCBERT__KAFKA__TOPIC", &topic)
            .env("TCBERT__KAFKA__DEAD_LETTER_TOPIC", &dead_letters);
        report(&processes::run(&mut command))
    };
    let night = run(&["--from", "2026-11-01", "--to", "2026-11-02T00:00:00Z"]);
    assert_eq!(number(&night["written"]), 24, "{night}");
    let found = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = ground.store().await;
        titles(store.as_ref(), (0..72).map(|n| format!("doc-{n}"))).await
    });
    let mut numbers: Vec<i32> = found.keys().map(|id| id[4..].parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (24..48).collect::<Vec<_>>());

    let rest = run(&["--from", "2026-11-02"]);
    assert_eq!(number(&rest["written"]), 24, "{rest}");
    let again = run(&["--from", "2026-11-01", "--to", "2026-11-02"]);
    assert_eq!(
        (&again["resumed"], number(&again["written"])),
        (&json!(false), 24)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_one_backfill_at_a_bounded_rate() {
    const TOTAL: u64 = 240;
    let ground = Ground::new(6);
    ground.produce(&documents("doc", TOTAL as usize));
    let arguments = [
        "backfill",
        "--json",
        "--offsets",
        "0:..,1:..,2:..,3:..,4:..,5:..",
        "--max-docs-per-second",
        "12",
    ];
    let started = Instant::now();
    let workers = [ground.spawn(&arguments), ground.spawn(&arguments)];
    let outputs = workers.map(finish);
    let elapsed = started.elapsed();
    let reports = outputs.each_ref().map(report);
    let logs = outputs.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    let context = format!(
        "{elapsed:?}\n{}\n{}\n{}\n{}",
        reports[0], logs[0], reports[1], logs[1]
    );
    let delivered = reports
        .each_ref()
        .map(|report| number(&report["delivered"]));
    let sum: u64 = delivered.iter().sum();
    assert!(
        delivered.iter().all(|count| *count > 0),
        "both have a share: {delivered:?} in {context}"
    );
    assert!(
        (TOTAL..TOTAL + IN_FLIGHT as u64 * 2).contains(&sum),
        "all, little twice: {delivered:?} in {context}"
    );
    assert_eq!(ground.points().await, TOTAL, "{context}");
    // Two workers at 12 documents a second cannot be faster.
    assert!(
        elapsed >= Duration::from_secs(TOTAL / 24 - 1),
        "too fast: {context}"
    );
    for report in reports {
        let rate = report["documents_per_second"].as_f64().unwrap();
        assert!(rate <= 13.0, "too fast: {report} in {context}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_each_format_go_in_and_what_is_broken_is_kept_beside_the_job() {
    let ground = Ground::new(1);
    let line = |id: &str| json!({ "id": id, "title": "央行宣布下调存款准备金率" }).to_string();
    let lines = |ids: [&str; 2]| format!("{}\n{}\n", line(ids[0]), line(ids[1]));
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(lines(["g1", "g2"]).as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let csv =
        "id,title,published_at\nc1,\"国家队公布名单,今日出发\",2026-01-01\nc2,标题,2026-01-02\n";
    let inputs = [
        ground.write("a.jsonl", format!("{}{{broken\n", lines(["a1", "a2"]))),
        ground.write("b.jsonl.gz", gzip),
        ground.write(
            "c.ndjson.zst",
            zstd::encode_all(lines(["z1", "z2"]).as_bytes(), 1).unwrap(),
        ),
        ground.write("d.csv", csv),
        parquet(&ground, "e.parquet", &["p1", "p2"])
            .display()
            .to_string(),
    ];
    let paths: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let arguments = [&["--input"], &paths[..]].concat();
    let report = ground.backfill(&arguments);
    assert_eq!(number(&report["written"]), 10, "{report}");
    assert_eq!(number(&report["dead_lettered"]), 1);
    assert_eq!(ground.points().await, 10);
    let letters = fs::read_to_string(report["dead_letters_in"].as_str().unwrap()).unwrap();
    let letter: Value = serde_json::from_str(letters.trim_end()).unwrap();
    assert_eq!(letter["value"], "{broken");
    assert_eq!(
        (&letter["class"], &letter["index"]),
        (&json!("invalid_json"), &json!(2))
    );
    assert!(letter["origin"].as_str().unwrap().ends_with("a.jsonl"));

    let strict = [&["backfill", "--fail-on-dead-letters"], &arguments[..]].concat();
    let output = ground.run(&strict);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("dead letters: 1 ("), "{log}");
    let letters = ground.broker.read_dead_letters(&ground.settings().kafka);
    assert!(letters.unwrap().is_empty(), "the topic is left alone");
    let to_topic = [&arguments[..], &["--dead-letters", "kafka"]].concat();
    ground.backfill(&to_topic);
    let letters = ground.broker.read_dead_letters(&ground.settings().kafka);
    assert_eq!(letters.unwrap().len(), 1);
}

fn parquet(ground: &Ground, name: &str, ids: &[&str]) -> PathBuf {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    let path = ground.folder.path().join(name);
    let schema = "message m { required binary id (UTF8); required binary title (UTF8); }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let file = fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let titles = vec!["新款电动汽车续航突破七百公里"; ids.len()];
    for values in [ids, &titles] {
        let values: Vec<ByteArray> = values.iter().map(|value| ByteArray::from(*value)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, None, None)
            .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_of_files_that_is_stopped_or_killed_goes_on() {
    // So slow that no run comes to its end before the signal reaches it, and that little becomes durable
    // between two commits, however slow the disk is.
    const TOTAL: u64 = 600;
    const RATE: &str = "200";
    let ground = Ground::new(1);
    let lines: String = (0..TOTAL)
        .map(|n| {
            format!(
                "{}\n",
                json!({ "id": format!("f{n}"), "title": format!("高考志愿填报第{n}天") })
            )
        })
        .collect();
    let file = ground.write("a.jsonl", lines);
    let arguments = [
        "backfill",
        "--json",
        "--input",
        file.as_str(),
        "--max-docs-per-second",
        RATE,
    ];
    let store = ground.store().await;
    let mut again = 0;
    for (name, at_least) in [("-KILL", 60), ("-TERM", 150)] {
        let mut run = ground.spawn(&arguments);
        let deadline = Instant::now() + Duration::from_secs(120);
        while store.count(PointFilter::default()).await.unwrap() < at_least {
            assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        signal(&run, name);
        let output = finish(run);
        assert!(!output.status.success());
        if name == "-TERM" {
            let log = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{log}");
            assert!(log.contains("goes on from here"), "{log}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            again += number(&report["delivered"]);
        } else {
            again += store.count(PointFilter::default()).await.unwrap();
        }
    }
    let last = ground.backfill(&arguments[2..4]);
    assert_eq!(last["resumed"], true);
    again = again + number(&last["delivered"]) - TOTAL;
    assert!(again <= 4 * IN_FLIGHT as u64, "{again} were done twice");
    assert_eq!(ground.points().await, TOTAL);
}

/// Told to stop while the store still answers the last writes: nothing is left to do, so that it ends well.
#[test]
fn a_backfill_that_is_stopped_with_nothing_left_to_do_exits_with_zero() {
    let ground = Ground::new(1);
    ground.produce(&documents("doc", 20));
    ground
        .server
        .faults()
        .always(Some(Fault::Slow(Duration::from_secs(2))));
    let run = ground.spawn(&["backfill", "--json", "--offsets", "0:.."]);
    let deadline = Instant::now() + Duration::from_secs(60);
    while ground.server.faults().served() == 0 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&run, "-TERM");
    let report = report(&finish(run));
    assert_eq!(number(&report["written"]), 20, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_older_than_the_live_workers_documents_never_overwrites_them() {
    let ground = Ground::new(1);
    ground.produce(&[
        document("moved", "第一版标题"),
        document("moved", "第二版标题"),
        document("filed", "来自线上的标题"),
        document("dead", "将被删除的标题"),
        SampleRecord::tombstone("dead"),
    ]);
    let settings = ground.settings();
    let live = Worker::start_with(&settings, ground.store().await).await;
    live.wait_for(5).await;
    let store = live.store.clone();
    live.stop().await;

    // Each with the deletion behind it, which the live worker has seen.
    let report = ground.backfill(&["--offsets", "0:..1"]);
    assert_eq!(number(&report["delivered"]), 2);
    let tombstoned = ground.backfill(&["--offsets", "0:3..4"]);
    assert_eq!(number(&tombstoned["delivered"]), 2);
    let record = |id: &str, title: &str, at: &str| {
        json!({ "id": id, "title": title, "published_at": at }).to_string()
    };
    // Newer than what is live, and not so far in the future that it counts as no time.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let old = [
        record("filed", "文件里的旧标题", "2020-01-01T00:00:00Z"),
        record("dead", "文件里的旧标题", "2020-01-01T00:00:00Z"),
        record("new", "只在文件里", "2020-01-01T00:00:00Z"),
        record("moved", "文件里更新的标题", &soon.to_string()),
    ];
    let file = ground.write("old.jsonl", old.join("\n"));
    ground.backfill(&["--input", &file]);

    let ids = ["moved", "filed", "dead", "new"].map(str::to_owned);
    let found = titles(store.as_ref(), ids).await;
    let expected = [
        ("filed", "来自线上的标题"),
        ("moved", "文件里更新的标题"),
        ("new", "只在文件里"),
    ];
    assert_eq!(
        found
            .iter()
            .map(|(id, title)| (&**id, &**title))
            .collect::<Vec<_>>(),
        expected
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lag_of_the_live_group_is_seen_from_outside() {
    let ground = Ground::new(2);
    ground.produce(&documents("doc", 40));
    let settings = ground.settings();
    let watch = LagWatch::open(&settings.kafka).unwrap();
    assert_eq!(watch.lag().unwrap(), 0, "nobody works on it yet");
    let live = Worker::start_with(&settings, ground.store().await).await;
    live.wait_for(40).await;
    live.stop().await;
    assert_eq!(watch.lag().unwrap(), 0);
    ground.produce(&documents("more", 25));
    wait_until("the lag", || watch.lag().unwrap() == 25).await;
    // A backfill that yields goes slowly beside it, and still ends.
    let report = ground.backfill(&["--offsets", "0:..8", "--yield-to-live", "--yield-lag", "10"]);
    assert_eq!(number(&report["delivered"]), 8);
}

#[test]
fn wrong_usage_exits_with_two_and_says_what_is_missing() {
    let ground = Ground::new(1);
    let refused = |arguments: &[&str], says: &str| {
        let output = ground.run(&[&["backfill"], arguments].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains(says), "{says:?} is missing in {message}");
    };
    refused(&[], "--from");
    refused(&["--from", "yesterday"], "yesterday");
    refused(&["--from", "2026-01-02", "--to", "2026-01-01"], "later");
    refused(&["--offsets", "0:5..2"], "before it begins");
    refused(&["--offsets", "0:..", "--input", "x.jsonl"], "--input");
    refused(&["--from", "0", "--max-docs-per-second", "0"], "above 0");
    let failed = |arguments: &[&str], says: &str| {
        let output = ground.run(&[&["backfill"], arguments].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(message.contains(says), "{says:?} is missing in {message}");
    };
    failed(&["--input", "no/such.jsonl"], "no/such.jsonl");
    failed(&["--offsets", "7:.."], "no partition 7");
}
