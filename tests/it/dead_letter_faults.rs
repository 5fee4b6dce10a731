//! Dead letters that must not vanish, do harm or block: their retention, what a replay may do, and
//! what is checked before the first record is read.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tcbert_worker::decode::{DecodeSettings, Decoder};
use tcbert_worker::document::{DocumentId, Generation, RecordPosition, TopicPartition};
use tcbert_worker::kafka::{
    DeadLetterFilter, DeadLetterProducer, DeadLetterSettings, EmbeddedBroker, FailingRequest,
    InjectedError, KafkaSettings, Properties, ReplayOptions, Rest, SampleProducer, SampleRecord,
    StoredDeadLetter, check_dead_letters, list_dead_letters, replay_dead_letters,
};
use tcbert_worker::settings::Settings;
use tcbert_worker::source::{DeadLetter, DeadLetterSink, Header, LARGEST_VALUE, SourceRecord};
use tcbert_worker::store::{PointFilter, Store};

use crate::apache_kafka::{self, ApacheKafka, unique};
use crate::kafka_reader::Reader;
use crate::processes;
use crate::support::{
    DEAD_LETTERS, PATIENCE, TOPIC, Worker, broker, document, settings, titles, wait_until,
};

const DAY_MS: i64 = 24 * 3600 * 1000;
/// Bytes of a value that the strict worker takes.
const STRICT: (&str, &str) = ("DECODE__MAX_VALUE_BYTES", "1024");

fn everything() -> DeadLetterFilter {
    DeadLetterFilter::default()
}

fn dead_letter(position: RecordPosition, timestamp_ms: Option<i64>) -> DeadLetter {
    DeadLetter {
        record: SourceRecord {
            position,
            generation: Generation(1),
            timestamp_ms,
            key: Some(b"old".to_vec()),
            value: Some(b"{".to_vec()),
            headers: Vec::new(),
            fault: None,
        },
        stage: "decode".to_owned(),
        class: "invalid_json".to_owned(),
        message: "not JSON".to_owned(),
    }
}

fn position(topic: &str, partition: i32, offset: i64) -> RecordPosition {
    RecordPosition {
        partition: TopicPartition::new(topic, partition),
        offset,
    }
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// What stands in a topic, read as dead letters are.
fn standing_in(kafka: &KafkaSettings, topic: &str) -> Vec<StoredDeadLetter> {
    let there = KafkaSettings {
        dead_letter_topic: topic.to_owned(),
        ..kafka.clone()
    };
    list_dead_letters(&there, &everything()).unwrap()
}

/// A document that the strict worker rejects for its size.
fn large(id: &str, title: &str) -> SampleRecord {
    let text = "很长的正文".repeat(200);
    SampleRecord {
        value: Some(
            json!({ "id": id, "title": title, "text": text })
                .to_string()
                .into_bytes(),
        ),
        ..document(id, title)
    }
}

async fn work_through(settings: &Settings, store: &std::sync::Arc<dyn Store>, records: u64) {
    let worker = Worker::start_with(settings, store.clone()).await;
    worker.wait_for(records).await;
    worker.stop().await;
}

fn replay(settings: &Settings, filter: &DeadLetterFilter) -> (u64, Vec<(String, String)>) {
    let mut left = Vec::new();
    let report = replay_dead_letters(
        &settings.kafka,
        &settings.dead_letter,
        filter,
        ReplayOptions::default(),
        |dead_letter, outcome| {
            if let Err(reason) = outcome {
                left.push((dead_letter.key_text(), reason));
            }
        },
    )
    .unwrap();
    assert_eq!(report.left, left.len() as u64);
    assert_eq!(report.wanted, report.sent + report.left);
    (report.sent, left)
}

/// A batch that is small on the wire may hold a value of any size: it is not copied and not spooled, and
/// its dead letter says what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_beyond_every_bound_becomes_a_dead_letter_without_being_kept() {
    let Some(kafka) = apache_kafka::shared("a_value_beyond_every_bound") else {
        return;
    };
    let (topic, dead_topic) = (unique("large"), unique("large-dead"));
    kafka.create_topic(&topic, 1, &[]);
    kafka.create_topic(&dead_topic, 1, &[]);
    let value = vec![b'7'; LARGEST_VALUE + 1];
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap_servers())
        .set("message.max.bytes", "200000000")
        .set("compression.type", "gzip")
        .create()
        .unwrap();
    producer
        .send(BaseRecord::to(&topic).key("large").payload(&value))
        .unwrap();
    producer.flush(PATIENCE).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let settings = KafkaSettings {
        brokers: kafka.bootstrap_servers().to_owned(),
        topic: topic.clone(),
        group_id: topic.clone(),
        dead_letter_topic: dead_topic.clone(),
        ..KafkaSettings::default()
    };
    let record = tokio::task::spawn_blocking({
        let settings = settings.clone();
        move || {
            let mut reader = Reader::start(&settings);
            reader.read_all(1);
            reader.records.pop().unwrap()
        }
    });
    let record = record.await.unwrap();
    assert_eq!(record.value.as_deref(), value.get(..4096));
    let decode = DecodeSettings::default();
    let error = Decoder::new(&decode).unwrap().decode(&record).unwrap_err();
    assert_eq!(error.class(), "oversized");
    assert!(
        error.to_string().contains(&value.len().to_string()),
        "{error}"
    );

    let keeping = DeadLetterSettings {
        spool_dir: spool.display().to_string(),
        ..DeadLetterSettings::default()
    };
    let sink = DeadLetterProducer::start(&settings, &keeping).unwrap();
    let rejected = DeadLetter {
        record,
        stage: "decode".to_owned(),
        class: error.class().to_owned(),
        message: error.to_string(),
    };
    sink.send(rejected).await.unwrap();
    let found = standing_in(&settings, &dead_topic).pop().unwrap();
    let cut = found.cut.clone().unwrap();
    let sha256 = hex::encode(Sha256::digest(&value));
    assert_eq!(cut.value_bytes, value.len() as u64);
    assert_eq!(cut.rest, Rest::Omitted(sha256));
    assert_eq!(found.value.as_deref(), value.get(..4096));
    assert_eq!(found.origin, Some(position(&topic, 0, 0)));
    assert!(!spool.exists(), "nothing of it is spooled");
    let outcome = replay_dead_letters(
        &settings,
        &keeping,
        &everything(),
        ReplayOptions::default(),
        |_, outcome| {
            assert!(outcome.unwrap_err().contains("too large to be kept"));
        },
    );
    assert_eq!(outcome.unwrap().left, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_neither_overwrites_what_is_newer_nor_revives_what_was_deleted() {
    let broker = broker(1);
    let folder = tempfile::tempdir().unwrap();
    let strict = settings(&broker, folder.path(), &[STRICT]);
    let lenient = settings(&broker, folder.path(), &[]);
    let store = {
        let expected = tcbert_worker::assemble::expected_collection(&strict).unwrap();
        tcbert_worker::assemble::open_store_for_run(&strict, &expected)
            .await
            .unwrap()
    };
    let mut deletion = document("deleted", "");
    deletion.value = None;
    let records = vec![
        large("updated", "旧的标题"),
        large("deleted", "已删除的标题"),
        large("only", "唯一的标题"),
        document("updated", "新的标题"),
        deletion,
    ];
    broker.produce(TOPIC, records).await.unwrap();
    work_through(&strict, &store, 5).await;

    // It is rejected once more, and replayed once more: it still is where it first stood.
    for (settings, sent) in [(&strict, 3), (&lenient, 6)] {
        let settings = settings.clone();
        let asked = settings.clone();
        let replayed = tokio::task::spawn_blocking(move || replay(&asked, &everything()));
        assert_eq!(replayed.await.unwrap(), (sent, Vec::new()));
        work_through(&settings, &store, sent).await;
    }

    let ids = ["updated", "deleted", "only"].map(str::to_owned);
    let found = titles(store.as_ref(), ids).await;
    let expected = [("only", "唯一的标题"), ("updated", "新的标题")];
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        expected.map(|(id, title)| (id.to_owned(), title.to_owned()))
    );
    let only = store.fetch(DocumentId::new("only").unwrap()).await.unwrap();
    assert_eq!(
        only.unwrap()["kafka_offset"],
        2,
        "the payload names where the record first stood"
    );
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), 2);
    assert_eq!(
        broker.committed(&lenient.kafka).unwrap(),
        14,
        "the replayed ones are committed where they stand"
    );
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_of_earlier_versions_are_read_and_replayed() {
    let broker = broker(3);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    // As commit 0425910 wrote them: sent with the record's own timestamp, which no header holds, and
    // a spool file that is named by the position alone.
    let headers = |offset: &str, more: &[(&str, &str)]| -> Vec<Header> {
        [
            ("own", "1"),
            ("__connect.errors.topic", TOPIC),
            ("__connect.errors.partition", "1"),
            ("__connect.errors.offset", offset),
            ("__connect.errors.connector.name", "tcbert-worker"),
            ("__connect.errors.task.id", "0"),
            ("__connect.errors.stage", "decode"),
            ("__connect.errors.class.name", "tcbert_worker::decode"),
            ("__connect.errors.exception.class.name", "invalid_json"),
            ("__connect.errors.exception.message", "not JSON"),
        ]
        .iter()
        .chain(more)
        .map(|(name, value)| Header {
            name: (*name).to_owned(),
            value: Some(value.as_bytes().to_vec()),
        })
        .collect()
    };
    let cut = [
        ("__connect.errors.value.size", "5"),
        ("__connect.errors.spool.file", "documents-1-8.json"),
    ];
    let old = |key: &str, headers: Vec<Header>| SampleRecord {
        headers,
        ..SampleRecord::new(key, "{br").at(1_700_000_000_000)
    };
    let records = vec![
        old("whole", headers("7", &[])),
        old("cut", headers("8", &cut)),
    ];
    broker.produce(DEAD_LETTERS, records).await.unwrap();
    let spool = Path::new(&settings.dead_letter.spool_dir);
    std::fs::create_dir_all(spool).unwrap();
    // "cut" and "{brok"; "own" is 1.
    std::fs::write(
        spool.join("documents-1-8.json"),
        r#"{"topic":"documents","partition":1,"offset":8,"timestamp_ms":1700000000000,
            "key_base64":"Y3V0","value_base64":"e2Jyb2s=",
            "headers":[{"name":"own","value_base64":"MQ=="}],
            "stage":"decode","class":"invalid_json","message":"not JSON"}"#,
    )
    .unwrap();

    let listed = standing_in(&settings.kafka, DEAD_LETTERS);
    assert_eq!(listed[0].timestamp_ms, Some(1_700_000_000_000));
    assert_eq!(replay(&settings, &everything()), (2, Vec::new()));
    let sent = standing_in(&settings.kafka, TOPIC);
    assert_eq!(sent.len(), 2);
    for (record, (value, offset)) in sent.iter().zip([("{br", 7), ("{brok", 8)]) {
        assert_eq!(record.position.partition.partition, 1);
        assert_eq!(record.timestamp_ms, Some(1_700_000_000_000));
        assert_eq!(record.value.as_deref(), Some(value.as_bytes()));
        assert_eq!(record.headers[0].name, "own");
        let origin: Value =
            serde_json::from_slice(record.headers[1].value.as_ref().unwrap()).unwrap();
        let expected = json!({
            "topic": TOPIC, "partition": 1, "offset": offset, "timestamp_ms": 1_700_000_000_000_i64,
        });
        assert_eq!(origin, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_dead_letter_makes_a_replay_write_to_no_other_topic_and_blocks_no_other_one() {
    let broker = EmbeddedBroker::start(&[(TOPIC, 2), (DEAD_LETTERS, 1), ("payments", 1)]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    let producer = DeadLetterProducer::start(&settings.kafka, &settings.dead_letter).unwrap();
    for (key, position) in [
        ("payment", position("payments", 0, 3)),
        ("nowhere", position(TOPIC, 7, 3)),
        ("good", position(TOPIC, 1, 3)),
    ] {
        let mut forged = dead_letter(position, Some(5));
        forged.record.key = Some(key.as_bytes().to_vec());
        producer.send(forged).await.unwrap();
    }
    broker
        .fail_requests(FailingRequest::Produce, InjectedError::TooLarge, 1)
        .unwrap();
    producer
        .send(dead_letter(position("payments", 0, 4), Some(5)))
        .await
        .unwrap();
    // One that names the spool file of another record.
    let spooled = standing_in(&settings.kafka, DEAD_LETTERS).pop().unwrap();
    let Rest::Spooled(file) = spooled.cut.unwrap().rest else {
        panic!("it is in the spool");
    };
    let headers = [
        ("__connect.errors.topic", TOPIC),
        ("__connect.errors.partition", "1"),
        ("__connect.errors.offset", "5"),
        ("__connect.errors.value.size", "1"),
        ("__connect.errors.spool.file", file.as_str()),
    ];
    let headers = headers.map(|(name, value)| Header {
        name: name.to_owned(),
        value: Some(value.as_bytes().to_vec()),
    });
    let stolen = SampleRecord {
        headers: headers.to_vec(),
        ..SampleRecord::new("stolen", "")
    };
    broker.produce(DEAD_LETTERS, vec![stolen]).await.unwrap();

    let (sent, left) = replay(&settings, &everything());
    let of = |key: &str| {
        let reasons = left.iter().filter(|(left, _)| left == key);
        reasons.map(|(_, reason)| reason.as_str()).next().unwrap()
    };
    assert_eq!((sent, left.len()), (1, 4), "{left:?}");
    assert!(of("payment").contains("--topic payments"), "{left:?}");
    assert!(of("nowhere").contains("documents[7]"), "{left:?}");
    assert!(of("stolen").contains("another record"), "{left:?}");
    assert_eq!(standing_in(&settings.kafka, TOPIC).len(), 1);
    assert!(standing_in(&settings.kafka, "payments").is_empty());

    // Who names the topic means it.
    let named = DeadLetterFilter {
        topic: Some("payments".to_owned()),
        ..everything()
    };
    assert_eq!(replay(&settings, &named), (2, Vec::new()));
    assert_eq!(standing_in(&settings.kafka, "payments").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_its_topic_does_not_take_back_is_named_and_the_others_are_sent() {
    let broker = broker(1);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    let producer = DeadLetterProducer::start(&settings.kafka, &settings.dead_letter).unwrap();
    producer
        .send(dead_letter(position(TOPIC, 0, 3), Some(5)))
        .await
        .unwrap();
    broker
        .fail_requests(FailingRequest::Produce, InjectedError::TooLarge, 1)
        .unwrap();
    let (sent, left) = replay(&settings, &everything());
    assert_eq!((sent, left.len()), (0, 1));
    assert!(left[0].1.contains("documents[0]"), "{left:?}");
    assert_eq!(replay(&settings, &everything()), (1, Vec::new()));
}

/// Settings of a producer of dead letters alone.
fn sending_to(servers: &str, topic: &str, folder: &Path) -> (KafkaSettings, DeadLetterSettings) {
    let kafka = KafkaSettings {
        brokers: servers.to_owned(),
        topic: format!("{topic}-source"),
        dead_letter_topic: topic.to_owned(),
        ..KafkaSettings::default()
    };
    let settings = DeadLetterSettings {
        spool_dir: folder.join("spool").display().to_string(),
        ..DeadLetterSettings::default()
    };
    (kafka, settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_the_broker_makes_by_itself_is_made_at_the_start() {
    let broker = EmbeddedBroker::start(&[(TOPIC, 1)]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (kafka, settings) = sending_to(&broker.bootstrap_servers(), "made", folder.path());
    list_dead_letters(&kafka, &everything()).unwrap_err();
    let producer = DeadLetterProducer::start(&kafka, &settings).unwrap();
    producer.check().await.unwrap();
    assert_eq!(list_dead_letters(&kafka, &everything()).unwrap(), []);
    // A broker that does not describe topics, as one that the user may not ask: a warning.
    let findings = check_dead_letters(&kafka, &settings).await;
    assert_eq!(findings.faults, [""; 0]);
    assert!(
        findings.warnings[0].contains("DescribeConfigs"),
        "{findings:?}"
    );
}

/// The binary with a small model and a store of its own.
fn worker(folder: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> std::process::Command {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let path = |path: std::path::PathBuf| path.display().to_string();
    let base = [
        ("MODEL__BUNDLE", path(goldens.join("tiny"))),
        ("MODEL__SESSIONS", "1".to_owned()),
        ("MODEL__THREADS", "1".to_owned()),
        (
            "TAGGING__TAXONOMY",
            path(goldens.join("taxonomies/single.toml")),
        ),
        ("STORE__KIND", "embedded".to_owned()),
        ("STORE__PATH", path(folder.join("store"))),
        ("BACKFILL__STATE_DIR", path(folder.join("state"))),
        ("DEAD_LETTER__SPOOL_DIR", path(folder.join("spool"))),
    ];
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tcbert-worker"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    for (key, value) in &base {
        command.env(format!("TCBERT__{key}"), value);
    }
    for (key, value) in variables {
        command.env(format!("TCBERT__{key}"), value);
    }
    command
}

fn failed_with(output: &Output, says: &[&str]) {
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let error = log.lines().find(|line| line.starts_with("error: "));
    let error = error.unwrap_or_else(|| panic!("no error: {log}"));
    for part in says {
        assert!(error.contains(part), "{part:?} is missing in {error}");
    }
}

/// What `doctor` says of dead letters.
fn diagnosis(output: &Output) -> Value {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "dead letters");
    check.unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_cannot_be_written_is_told_at_the_start() {
    let broker = broker(1);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let spool = folder.path().join("file/spool").display().to_string();
    let brokers = broker.bootstrap_servers();
    broker
        .produce(TOPIC, vec![document("doc", "标题")])
        .await
        .unwrap();
    let variables = [
        ("KAFKA__BROKERS", brokers.as_str()),
        ("KAFKA__TOPIC", TOPIC),
        ("KAFKA__DEAD_LETTER_TOPIC", DEAD_LETTERS),
        ("DEAD_LETTER__SPOOL_DIR", spool.as_str()),
    ];
    let run =
        |arguments: &[&str]| processes::run(&mut worker(folder.path(), &variables, arguments));
    let says = [spool.as_str(), "dead_letter.spool_dir"];
    failed_with(&run(&["run"]), &says);
    failed_with(&run(&["backfill", "--offsets", "0:0..1"]), &says);
    let check = diagnosis(&run(&["doctor", "--json"]));
    assert_eq!(check["passed"], false, "{check}");
    assert!(
        check["finding"].as_str().unwrap().contains(&spool),
        "{check}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_dead_letters_wait_is_not_ready() {
    let broker = broker(1);
    let folder = tempfile::tempdir().unwrap();
    broker
        .produce(TOPIC, vec![SampleRecord::new("broken", "{not json")])
        .await
        .unwrap();
    // Some twenty seconds, with the pauses between the attempts.
    broker
        .fail_requests(FailingRequest::Produce, InjectedError::Unknown, 8)
        .unwrap();
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().port()
    };
    let (brokers, admin) = (broker.bootstrap_servers(), format!("127.0.0.1:{port}"));
    let variables = [
        ("KAFKA__BROKERS", brokers.as_str()),
        ("KAFKA__TOPIC", TOPIC),
        ("KAFKA__GROUP_ID", "tests"),
        ("KAFKA__DEAD_LETTER_TOPIC", DEAD_LETTERS),
        ("ADMIN__LISTEN", admin.as_str()),
    ];
    let running = worker(folder.path(), &variables, &["run"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let answers = |wanted: &str| {
        crate::operations::get(port, "/readyz").is_some_and(|got| got.contains(wanted))
    };
    wait_until("a dead letter that waits", || answers("dead-letter topic")).await;
    assert!(answers(" 503 "));
    wait_until("ready again", || answers(" 200 ")).await;
    let settings = settings(&broker, folder.path(), &[]);
    wait_until("the commit", || {
        broker.committed(&settings.kafka).unwrap() == 1
    })
    .await;
    processes::signal(&running, "-TERM");
    assert!(processes::finish(running).status.success());
    assert_eq!(standing_in(&settings.kafka, DEAD_LETTERS).len(), 1);
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Produces one record of that age into a topic that deletes by age, and waits until it is gone.
fn wait_for_expiry(kafka: &ApacheKafka, topic: &str, age_ms: i64) {
    let servers = kafka.bootstrap_servers();
    let record = SampleRecord::new("control", "x").at(now_ms() - age_ms);
    SampleProducer::new(servers)
        .unwrap()
        .produce(topic, &[record])
        .unwrap();
    let settings = KafkaSettings {
        brokers: servers.to_owned(),
        ..KafkaSettings::default()
    };
    let deadline = Instant::now() + PATIENCE;
    while !standing_in(&settings, topic).is_empty() {
        assert!(
            Instant::now() < deadline,
            "nothing expires: {}",
            kafka.logs()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_dead_letter_of_an_old_record_outlives_the_records_age() {
    let Some(kafka) = apache_kafka::own(
        "the_dead_letter_of_an_old_record",
        1,
        &[
            ("log.retention.check.interval.ms", "300"),
            ("log.initial.task.delay.ms", "100"),
        ],
    ) else {
        return;
    };
    let day = DAY_MS.to_string();
    for topic in ["dead", "control"] {
        kafka.create_topic(topic, 1, &[("retention.ms", &day)]);
    }
    let folder = tempfile::tempdir().unwrap();
    let (settings, dead_letters) = sending_to(kafka.bootstrap_servers(), "dead", folder.path());
    let old = now_ms() - 30 * DAY_MS;
    let sent = dead_letter(position("news", 0, 3), Some(old));
    block_on(async {
        let producer = DeadLetterProducer::start(&settings, &dead_letters).unwrap();
        producer.send(sent.clone()).await.unwrap();
    });
    // Once through all topics and once more: whatever is too old is gone by then.
    for _ in 0..2 {
        wait_for_expiry(&kafka, "control", 30 * DAY_MS);
    }
    let found = list_dead_letters(&settings, &everything()).unwrap();
    assert_eq!(found.len(), 1, "the dead letter is gone");
    assert_eq!(found[0].timestamp_ms, Some(old), "the record's own time");
    assert_eq!(found[0].origin, Some(sent.record.position));
}

#[test]
fn a_dead_letter_topic_that_does_not_exist_is_told_at_the_start() {
    let Some(kafka) = apache_kafka::shared("a_dead_letter_topic_that_does_not_exist") else {
        return;
    };
    let (topic, missing) = (unique("news"), unique("missing"));
    kafka.create_topic(&topic, 1, &[]);
    SampleProducer::new(kafka.bootstrap_servers())
        .unwrap()
        .produce(&topic, &[document("doc", "标题")])
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let variables = [
        ("KAFKA__BROKERS", kafka.bootstrap_servers()),
        ("KAFKA__TOPIC", topic.as_str()),
        ("KAFKA__GROUP_ID", topic.as_str()),
        ("KAFKA__DEAD_LETTER_TOPIC", missing.as_str()),
    ];
    let run =
        |arguments: &[&str]| processes::run(&mut worker(folder.path(), &variables, arguments));
    let says = [
        missing.as_str(),
        "does not exist",
        "kafka.dead_letter_topic",
    ];
    failed_with(&run(&["run"]), &says);
    failed_with(&run(&["backfill", "--from", "2020-01-01"]), &says);
    let unreadable = [missing.as_str(), "kafka.dead_letter_topic"];
    failed_with(&run(&["dead-letters", "replay"]), &unreadable);
    failed_with(&run(&["dead-letters", "list"]), &unreadable);
    let check = diagnosis(&run(&["doctor", "--json"]));
    assert_eq!(check["passed"], false, "{check}");
    assert!(
        check["finding"]
            .as_str()
            .unwrap()
            .contains("does not exist"),
        "{check}"
    );
}

#[test]
fn doctor_reads_the_settings_of_the_dead_letter_topic() {
    let Some(kafka) = apache_kafka::shared("doctor_reads_the_settings") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let found = |settings: &[(&str, &str)]| {
        let topic = unique("dead");
        kafka.create_topic(&topic, 1, settings);
        let (settings, dead_letters) = sending_to(kafka.bootstrap_servers(), &topic, folder.path());
        block_on(check_dead_letters(&settings, &dead_letters))
    };
    let well = found(&[("retention.ms", "604800000")]);
    assert_eq!((well.faults.len(), well.warnings.len()), (0, 0), "{well:?}");
    assert!(well.found[1].contains("7 days"), "{well:?}");
    let compacted = found(&[("cleanup.policy", "compact")]);
    assert!(compacted.faults[0].contains("compact"), "{compacted:?}");
    let short = found(&[("retention.ms", "3600000")]);
    assert!(short.warnings[0].contains("retention.ms"), "{short:?}");
    let appended = found(&[("message.timestamp.type", "LogAppendTime")]);
    assert!(
        appended.warnings[0].contains("LogAppendTime"),
        "{appended:?}"
    );
}

#[test]
fn a_user_without_rights_to_describe_gets_a_warning() {
    let listeners = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        (port, format!("SECURE://127.0.0.1:{port}"))
    };
    let all = format!(
        "CLIENT://127.0.0.1:{{client}},{},CONTROLLER://127.0.0.1:{{controller}}",
        listeners.1
    );
    let advertised = format!("CLIENT://127.0.0.1:{{client}},{}", listeners.1);
    let properties = [
        ("listeners", all.as_str()),
        ("advertised.listeners", advertised.as_str()),
        (
            "listener.security.protocol.map",
            "CLIENT:PLAINTEXT,SECURE:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        ),
        ("sasl.enabled.mechanisms", "SCRAM-SHA-512"),
        (
            "listener.name.secure.scram-sha-512.sasl.jaas.config",
            "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        ),
        (
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        ),
        // Brokers and tests; the user of the worker has no right at all.
        ("super.users", "User:ANONYMOUS"),
    ];
    let user = "SCRAM-SHA-512=[name=worker,password=secret]";
    let Some(kafka) = apache_kafka::own_with_user("a_user_without_rights", &properties, user)
    else {
        return;
    };
    kafka.create_topic("dead", 1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", listeners.0);
    let (mut settings, dead_letters) = sending_to(&address, "dead", folder.path());
    settings.properties = Properties::from_pairs([
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "worker"),
        ("sasl.password", "secret"),
    ]);
    let findings = block_on(check_dead_letters(&settings, &dead_letters));
    assert_eq!(findings.faults, [""; 0]);
    assert!(findings.warnings[0].contains("describe"), "{findings:?}");
    block_on(async {
        let producer = DeadLetterProducer::start(&settings, &dead_letters).unwrap();
        producer.check().await.unwrap();
    });
}

#[test]
fn the_shipped_deployments_mount_a_volume_for_the_spool() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let spool = "/var/lib/tcbert-worker/dead-letters";
    let image = read("Dockerfile");
    assert!(image.contains(&format!("TCBERT__DEAD_LETTER__SPOOL_DIR={spool}")));
    let variable = format!("TCBERT__DEAD_LETTER__SPOOL_DIR: {spool}");
    let (compose, worker) = (read("compose.yaml"), read("kubernetes/worker.yaml"));
    for text in [&compose, &worker] {
        assert!(text.contains(&variable));
    }
    assert!(compose.contains(&format!("- dead-letters:{spool}")));
    for text in [&worker, &read("kubernetes/backfill.yaml")] {
        assert!(text.contains(&format!("mountPath: {spool}")));
    }
}

/// A dead letter between the topic's segment.bytes and max.message.bytes is rejected as a list that is too
/// large: it has to be cut like one that is too large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_larger_than_a_segment_is_cut() {
    let Some(kafka) = apache_kafka::shared("a_dead_letter_larger_than_a_segment") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let topic = unique("small-segments");
    kafka.create_topic(
        &topic,
        1,
        &[
            ("segment.bytes", "1048576"),
            ("max.message.bytes", "8388608"),
        ],
    );
    let servers = KafkaSettings {
        brokers: kafka.bootstrap_servers().to_owned(),
        topic: format!("{topic}-source"),
        dead_letter_topic: topic.clone(),
        ..KafkaSettings::default()
    };
    let spool = DeadLetterSettings {
        spool_dir: folder.path().join("spool").display().to_string(),
        ..DeadLetterSettings::default()
    };
    let producer = DeadLetterProducer::start(&servers, &spool).unwrap();
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(2 << 20)
    .collect();
    let rejected = DeadLetter {
        record: SourceRecord {
            position: RecordPosition {
                partition: TopicPartition::new("news", 0),
                offset: 3,
            },
            generation: Generation(1),
            timestamp_ms: Some(5),
            key: Some(b"k".to_vec()),
            value: Some(noise),
            headers: Vec::new(),
            fault: None,
        },
        stage: "decode".to_owned(),
        class: "invalid_json".to_owned(),
        message: "not JSON".to_owned(),
    };
    let sent = tokio::time::timeout(PATIENCE, producer.send(rejected)).await;
    assert!(
        matches!(sent, Ok(Ok(()))),
        "the dead letter blocks its partition: {sent:?}"
    );
}

/// In a compacted topic the replayed record is the last one of its key, so that Kafka drops the newer one,
/// or the deletion: not before the next time the topic is read does anybody notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_leaves_compacted_topics_alone_unless_told_otherwise() {
    let Some(kafka) = apache_kafka::shared("a_replay_leaves_compacted_topics_alone") else {
        return;
    };
    let (topic, dead_topic) = (unique("compacted"), unique("compacted-dead"));
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact,delete")]);
    kafka.create_topic(&dead_topic, 1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let settings = KafkaSettings {
        brokers: kafka.bootstrap_servers().to_owned(),
        topic: topic.clone(),
        dead_letter_topic: dead_topic.clone(),
        ..KafkaSettings::default()
    };
    let spool = DeadLetterSettings {
        spool_dir: folder.path().display().to_string(),
        ..DeadLetterSettings::default()
    };
    let producer = DeadLetterProducer::start(&settings, &spool).unwrap();
    producer
        .send(dead_letter(position(&topic, 0, 0), Some(5)))
        .await
        .unwrap();
    let replay = |options| {
        let mut reasons = Vec::new();
        let report =
            replay_dead_letters(&settings, &spool, &everything(), options, |_, outcome| {
                reasons.extend(outcome.err());
            });
        (report.unwrap().sent, reasons)
    };
    let (sent, reasons) = replay(ReplayOptions::default());
    assert_eq!(sent, 0);
    assert!(reasons[0].contains("--into-compacted"), "{reasons:?}");
    let all_the_same = ReplayOptions {
        into_compacted: true,
        ..ReplayOptions::default()
    };
    assert_eq!(replay(all_the_same), (1, Vec::new()));
}
