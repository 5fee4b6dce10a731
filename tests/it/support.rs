//! What several integration tests need: settings, sample records, a broker, and a look at the store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tcbert_worker::assemble::{self, Engine};
use tcbert_worker::document::{DocumentId, LatestTime};
use tcbert_worker::kafka::{DeadLetterProducer, EmbeddedBroker, KafkaSource, SampleRecord};
use tcbert_worker::pipeline::{self, Counters, Counts, Ending, PipelineError};
use tcbert_worker::settings::{Origins, Settings};
use tcbert_worker::store::groups::{self, Writer};
use tcbert_worker::store::{PointWrite, Store, StoreError, WriteOutcome};
use tcbert_worker::telemetry::Metrics;
use tokio_util::sync::CancellationToken;

/// A write for which no time is too late: the present decides nothing in these tests.
pub trait Put {
    fn put(&self, batch: Vec<PointWrite>) -> BoxFuture<'_, Result<WriteOutcome, StoreError>>;
}

impl<S: Store + ?Sized> Put for S {
    fn put(&self, batch: Vec<PointWrite>) -> BoxFuture<'_, Result<WriteOutcome, StoreError>> {
        self.write(batch, LatestTime::ANY)
    }
}

pub const TOPIC: &str = "documents";
pub const DEAD_LETTERS: &str = "documents.dead-letters";

/// Longest that a test waits for something that should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where a worker finds its broker and its store, as variables; all else is as by default.
pub fn places(broker: &EmbeddedBroker, folder: &Path) -> Vec<(String, String)> {
    let store = folder.join("store").display().to_string();
    let spool = folder.join("spool").display().to_string();
    let brokers = broker.bootstrap_servers();
    variables(&[
        ("KAFKA__BROKERS", brokers.as_str()),
        ("KAFKA__TOPIC", TOPIC),
        ("KAFKA__GROUP_ID", "tests"),
        ("KAFKA__DEAD_LETTER_TOPIC", DEAD_LETTERS),
        ("DEAD_LETTER__SPOOL_DIR", spool.as_str()),
        ("STORE__KIND", "embedded"),
        ("STORE__PATH", store.as_str()),
        ("STORE__APPLY_MIGRATIONS", "true"),
    ])
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(key, value)| (format!("TCBERT__{key}"), (*value).to_owned()))
        .collect()
}

/// Settings with `overrides` on top of what every test needs.
pub fn settings(broker: &EmbeddedBroker, folder: &Path, overrides: &[(&str, &str)]) -> Settings {
    let variables = [
        places(broker, folder),
        variables(&[
            ("KAFKA__COMMIT_INTERVAL_MS", "100"),
            ("MODEL__SESSIONS", "1"),
            ("MODEL__THREADS", "1"),
        ]),
        variables(overrides),
    ]
    .concat();
    Settings::load(&Origins {
        file: None,
        variables,
        ..Origins::default()
    })
    .unwrap()
}

/// A broker with the topics of the tests.
pub fn broker(partitions: i32) -> EmbeddedBroker {
    EmbeddedBroker::start(&[(TOPIC, partitions), (DEAD_LETTERS, 1)]).unwrap()
}

/// A record of a document with this id and title.
pub fn document(id: &str, title: &str) -> SampleRecord {
    SampleRecord {
        key: Some(id.as_bytes().to_vec()),
        value: Some(
            serde_json::json!({ "id": id, "title": title })
                .to_string()
                .into_bytes(),
        ),
        ..SampleRecord::default()
    }
}

/// `count` documents with distinct ids and varied titles.
pub fn documents(prefix: &str, count: usize) -> Vec<SampleRecord> {
    const TITLES: [&str; 5] = [
        "国家队公布世界杯预选赛大名单",
        "央行宣布下调存款准备金率，股市应声上涨",
        "新款电动汽车续航突破七百公里",
        "高考志愿填报今日开始，专家支招",
        "这部电影票房破十亿，导演谈创作心路历程以及演员们在片场的点点滴滴",
    ];
    (0..count)
        .map(|index| {
            let title = TITLES
                .get(index % TITLES.len())
                .copied()
                .unwrap_or_default();
            document(&format!("{prefix}-{index}"), &format!("{title}（{index}）"))
        })
        .collect()
}

/// A worker built as `run` builds it, in this process.
pub struct Worker {
    pub counters: Arc<Counters>,
    pub store: Arc<dyn Store>,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<Result<Ending, PipelineError>>,
}

impl Worker {
    /// Starts a worker over a store of its own.
    pub async fn start(settings: &Settings) -> Self {
        let store = assemble::open_store_for_run(
            settings,
            &assemble::expected_collection(settings).unwrap(),
        )
        .await
        .unwrap();
        Self::start_with(settings, store).await
    }

    /// Starts a worker over `store`.
    pub async fn start_with(settings: &Settings, store: Arc<dyn Store>) -> Self {
        let engine: Engine = assemble::load_engine(settings.clone()).await.unwrap();
        let group = Writer::Group(settings.kafka.group_id.clone());
        groups::register(&*store, &group, jiff::Timestamp::now())
            .await
            .unwrap();
        let kafka = settings.kafka.clone();
        let source = tokio::task::spawn_blocking(move || KafkaSource::start(&kafka))
            .await
            .unwrap()
            .unwrap();
        let dead_letters =
            DeadLetterProducer::start(&settings.kafka, &settings.dead_letter).unwrap();
        let stages = engine
            .into_stages(
                settings,
                Arc::new(source),
                store.clone(),
                Arc::new(dead_letters),
                Metrics::new().unwrap(),
            )
            .unwrap();
        let counters = Arc::new(Counters::default());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(pipeline::run(
            stages,
            assemble::wiring(settings),
            counters.clone(),
            shutdown.clone(),
        ));
        Self {
            counters,
            store,
            shutdown,
            running,
        }
    }

    /// Waits until so many records are accounted for.
    pub async fn wait_for(&self, accounted_for: u64) {
        wait_until(&format!("{accounted_for} records accounted for"), || {
            self.counters.snapshot().accounted_for() >= accounted_for
        })
        .await;
    }

    /// Stops as SIGTERM does.
    pub async fn stop(self) -> Counts {
        self.shutdown.cancel();
        let ending = tokio::time::timeout(PATIENCE, self.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(ending, Ending::Stopped);
        self.counters.snapshot()
    }
}

/// Waits for something that should happen soon.
pub async fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_within(what, PATIENCE.as_secs(), condition).await;
}

/// The same for what takes longer.
pub async fn wait_within(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Titles of the documents with these ids that are in the store and not deleted.
pub async fn titles(
    store: &dyn Store,
    ids: impl IntoIterator<Item = String>,
) -> BTreeMap<String, String> {
    let mut titles = BTreeMap::new();
    for id in ids {
        let payload = store.fetch(DocumentId::new(&id).unwrap()).await.unwrap();
        if let Some(title) = payload
            .as_ref()
            .and_then(|payload| payload.get("title")?.as_str())
        {
            titles.insert(id, title.to_owned());
        }
    }
    titles
}
