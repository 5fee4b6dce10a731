//! Peak resident memory of the worker's own process, with the default bounds. Each prints its figure.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tcbert_worker::kafka::{
    DeadLetterFilter, EmbeddedBroker, SampleProducer, SampleRecord, list_dead_letters,
};

use crate::processes::signal;
use crate::support::{DEAD_LETTERS, TOPIC, broker, places, settings, wait_within};

/// What records with many small attributes may take, with the default settings and where all that the budget has room
/// for waits side by side: it was 2.2 GB. And what the worker may take beside one value that is larger than it ever
/// holds.
const MOST_MIB: u64 = 400;
const MOST_SIDE_BY_SIDE_MIB: u64 = 700;
const BESIDE_A_VALUE_MIB: u64 = 250;

/// More than the budget has room for.
const RECORDS: i32 = 24;
const RECORD_BYTES: usize = 3_900_000;

/// Megabytes of a value that is larger than every bound; the old worker took its size three times.
fn huge_megabytes() -> usize {
    std::env::var("TCBERT_TEST_HUGE_VALUE_MB").map_or(200, |text| text.parse().unwrap())
}

/// A worker in a process of its own, killed when it is dropped.
struct Running(Child);

impl Running {
    fn start(broker: &EmbeddedBroker, folder: &Path, linger_ms: &str) -> Self {
        let program = std::env::var("TCBERT_TEST_BINARY")
            .unwrap_or_else(|_| env!("CARGO_BIN_EXE_tcbert-worker").to_owned());
        let child = Command::new(program)
            .arg("run")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .envs(places(broker, folder))
            .env("TCBERT__BATCH__LINGER_MS", linger_ms)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// The most that was ever resident, in MiB; `None` where the system does not say it.
    fn peak_mib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes / 1024)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn producer(broker: &EmbeddedBroker, compression: &str) -> SampleProducer {
    let properties = [
        ("message.max.bytes", "1000000000"),
        ("queue.buffering.max.kbytes", "2000000"),
        ("compression.type", compression),
    ];
    SampleProducer::with_properties(&broker.bootstrap_servers(), &properties).unwrap()
}

/// A document with as many attributes as fit, none longer than a number.
fn many_attributes(number: i32) -> SampleRecord {
    let id = format!("many-{number}");
    let mut value = format!(r#"{{"id":"{id}","title":"央行宣布下调存款准备金率""#);
    let mut attribute = 0;
    while value.len() < RECORD_BYTES {
        write!(value, r#","k{attribute}":{number}"#).unwrap();
        attribute += 1;
    }
    value.push('}');
    SampleRecord {
        key: Some(id.into_bytes()),
        value: Some(value.into_bytes()),
        ..SampleRecord::default()
    }
    .to_partition(number)
}

/// Records of the test, sixty in a measurement.
fn records() -> i32 {
    std::env::var("TCBERT_TEST_MANY_ATTRIBUTES").map_or(RECORDS, |text| text.parse().unwrap())
}

/// Lets a worker write the records, and gives its peak.
async fn peak_of_many_attributes(folder: &Path, linger_ms: &str) -> Option<u64> {
    let records = records();
    let broker = EmbeddedBroker::start(&[(TOPIC, records), (DEAD_LETTERS, 1)]).unwrap();
    // What the client unpacks is not bounded, so that nothing is packed here.
    let producer = producer(&broker, "none");
    for number in 0..records {
        producer.produce(TOPIC, &[many_attributes(number)]).unwrap();
    }
    let settings = settings(&broker, folder, &[]);
    let mut running = Running::start(&broker, folder, linger_ms);
    wait_within("the records", 180, || {
        assert!(
            running.0.try_wait().unwrap().is_none(),
            "the worker has ended"
        );
        broker.committed(&settings.kafka).unwrap_or(0) == i64::from(records)
    })
    .await;
    let peak = running.peak_mib();
    signal(&running.0, "-TERM");
    assert!(running.0.wait().unwrap().success());
    let dead = list_dead_letters(&settings.kafka, &DeadLetterFilter::default()).unwrap();
    assert!(dead.is_empty(), "{dead:?}");
    peak
}

/// Sixty valid records of 3.9 MB were 2.2 GB as trees of their attributes, of which the budget knew nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_attributes_stay_within_the_memory_that_is_promised() {
    // The default, and so long that as much as the budget has room for waits side by side, however slowly it is decoded.
    for (linger_ms, most) in [("20", MOST_MIB), ("20000", MOST_SIDE_BY_SIDE_MIB)] {
        let folder = tempfile::tempdir().unwrap();
        if let Some(peak) = peak_of_many_attributes(folder.path(), linger_ms).await {
            println!(
                "{} records of 3.9 MB, linger of {linger_ms} ms: {peak} MiB resident at most",
                records()
            );
            assert!(peak <= most, "{peak} MiB");
        }
    }
}

/// A batch of some hundred kilobytes may hold a value of any size. The client unpacks it; nothing copies it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_value_is_not_copied_and_becomes_a_dead_letter() {
    let megabytes = huge_megabytes();
    let folder = tempfile::tempdir().unwrap();
    let broker = broker(1);
    let huge = SampleRecord {
        key: Some(b"huge".to_vec()),
        value: Some(vec![b'7'; megabytes * 1_000_000]),
        ..SampleRecord::default()
    };
    producer(&broker, "gzip").produce(TOPIC, &[huge]).unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    let mut running = Running::start(&broker, folder.path(), "20");
    wait_within("the huge value", 180, || {
        assert!(
            running.0.try_wait().unwrap().is_none(),
            "the worker has ended"
        );
        broker.committed(&settings.kafka).unwrap_or(0) == 1
    })
    .await;
    let peak = running.peak_mib();
    signal(&running.0, "-TERM");
    assert!(running.0.wait().unwrap().success());
    let dead = list_dead_letters(&settings.kafka, &DeadLetterFilter::default()).unwrap();
    let dead_letter = dead.first().unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead_letter.class, "oversized");
    let kept = dead_letter.value.as_ref().unwrap().len();
    assert!(kept <= 8192, "{kept} bytes are kept");
    if let Some(peak) = peak {
        println!("a value of {megabytes} MB in one gzip batch: {peak} MiB resident at most");
        // It was more than three times.
        let own_mib = megabytes as u64 * 1_000_000 / 1024 / 1024;
        assert!(peak <= own_mib + BESIDE_A_VALUE_MIB, "{peak} MiB");
    }
}
