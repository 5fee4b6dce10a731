//! A worker in this process, wired as `run` wires it, whose `/metrics` are scraped; and its surroundings,
//! which can be made to fail.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tcbert_worker::assemble::{self, Engine};
use tcbert_worker::cli::vitals;
use tcbert_worker::kafka::{
    DeadLetterProducer, EmbeddedBroker, KafkaSource, SampleProducer, SampleRecord,
};
use tcbert_worker::model::twin::TwinModel;
use tcbert_worker::model::{Model, ModelError, PassInput, PassOutput};
use tcbert_worker::pipeline::{self, Counters, Ending, PipelineError, Wiring};
use tcbert_worker::score::{ModelIdentity, Tagger};
use tcbert_worker::settings::Settings;
use tcbert_worker::source::Source;
use tcbert_worker::telemetry::{AdminServer, Health, Metrics};
use tcbert_worker::tokenize::PromptTokenizer;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::film::{Film, Page};
use crate::operations;
use crate::qdrant_server::{Options, TestServer};
use crate::scripted_source::{Script, ScriptedSource};
use crate::support::{self, DEAD_LETTERS, PATIENCE, TOPIC};

/// How far ahead of time troubles are looked at that count only once they have lasted: further than the
/// longest of the graces.
pub const AHEAD: Duration = Duration::from_secs(200);

/// A model that can be made to hang.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn close(&self) {
        *self.0.0.lock() = true;
    }

    pub fn open(&self) {
        *self.0.0.lock() = false;
        self.0.1.notify_all();
    }
}

struct GatedModel {
    model: TwinModel,
    gate: Gate,
}

impl Model for GatedModel {
    fn hidden_size(&self) -> usize {
        self.model.hidden_size()
    }

    fn run(&mut self, input: &PassInput) -> Result<PassOutput, ModelError> {
        let (closed, changed) = &*self.gate.0;
        changed.wait_while(&mut closed.lock(), |closed| *closed);
        self.model.run(input)
    }
}

pub struct Scene {
    pub broker: EmbeddedBroker,
    /// Where the dead letters go: a cluster of its own, so that it can fail alone.
    pub dead_letters: EmbeddedBroker,
    pub server: TestServer,
    pub gate: Gate,
    pub film: Film,
    /// How far ahead of time it is looked at the source.
    pub ahead: Duration,
    /// Instead of the broker, where changes of the assignment are scripted.
    pub script: Script,
    source: Option<Arc<KafkaSource>>,
    metrics: Metrics,
    health: Health,
    admin: AdminServer,
    shutdown: CancellationToken,
    running: Option<tokio::task::JoinHandle<Result<Ending, PipelineError>>>,
    _folder: tempfile::TempDir,
    runtime: Runtime,
}

impl Scene {
    /// A worker over a broker, with these settings beside the usual ones.
    pub fn start(partitions: i32, overrides: &[(&str, &str)]) -> Self {
        Self::open(partitions, overrides, true)
    }

    /// A worker over its script.
    pub fn scripted() -> Self {
        Self::open(1, &[], false)
    }

    fn open(partitions: i32, overrides: &[(&str, &str)], over_kafka: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let broker = support::broker(partitions);
        let dead_letters = EmbeddedBroker::start(&[(DEAD_LETTERS, 1)]).unwrap();
        let server = TestServer::start(Options::default());
        let folder = tempfile::tempdir().unwrap();
        let url = server.url();
        let usual = [
            ("STORE__KIND", "qdrant"),
            ("STORE__URL", url.as_str()),
            ("KAFKA__COMMIT_INTERVAL_MS", "50"),
        ];
        let all = [&usual[..], overrides].concat();
        let settings = support::settings(&broker, folder.path(), &all);
        let metrics = Metrics::new().unwrap();
        let health = Health::new();
        let gate = Gate::default();
        let (scripted, script) = ScriptedSource::scripted_group();
        let shutdown = CancellationToken::new();
        let (source, admin, running) = runtime.block_on(async {
            let address = "127.0.0.1:0".parse().unwrap();
            let admin = AdminServer::start(address, health.clone(), metrics.clone())
                .await
                .unwrap();
            let engine = engine(&settings, &gate);
            let store = assemble::open_store_for_run(&settings, &engine.expectation())
                .await
                .unwrap();
            let source = over_kafka.then(|| {
                let nothing = Arc::new(|_| Some(0));
                let (kafka, metrics) = (settings.kafka.clone(), metrics.clone());
                Arc::new(KafkaSource::start_for_store(&kafka, nothing, metrics).unwrap())
            });
            let mut elsewhere = settings.kafka.clone();
            elsewhere.brokers = dead_letters.bootstrap_servers();
            let rejected = DeadLetterProducer::start(&elsewhere, &settings.dead_letter).unwrap();
            let events: Arc<dyn Source> = match &source {
                Some(source) => source.clone(),
                None => scripted,
            };
            let stages = engine.into_stages(
                &settings,
                events,
                store,
                Arc::new(rejected),
                metrics.clone(),
            );
            let wiring = Wiring {
                health: Some(health.clone()),
                ..assemble::wiring(&settings)
            };
            health.set_started();
            let counters = Arc::new(Counters::default());
            let run = pipeline::run(stages.unwrap(), wiring, counters, shutdown.clone());
            (source, admin, tokio::spawn(run))
        });
        Self {
            broker,
            dead_letters,
            server,
            gate,
            film: Film::default(),
            ahead: Duration::ZERO,
            script,
            source,
            metrics,
            health,
            admin,
            shutdown,
            running: Some(running),
            _folder: folder,
            runtime,
        }
    }

    pub fn produce(&self, records: &[SampleRecord]) {
        let producer = SampleProducer::new(&self.broker.bootstrap_servers()).unwrap();
        producer.produce(TOPIC, records).unwrap();
    }

    pub fn scrape(&self) -> Page {
        if let Some(source) = &self.source {
            let now = Instant::now() + self.ahead;
            vitals::publish(&source.status(), now, &self.metrics, &self.health);
        }
        let response = operations::get(self.admin.address().port(), "/metrics").unwrap();
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        Page::parse(body)
    }

    /// Waits until `/metrics` shows it.
    pub fn wait(&self, what: &str, shown: impl Fn(&Page) -> bool) -> Page {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = self.scrape();
            if shown(&page) {
                return page;
            }
            let is_over = self
                .running
                .as_ref()
                .is_none_or(|running| running.is_finished());
            assert!(
                !is_over && Instant::now() < deadline,
                "waited in vain for {what}: {:?}",
                page.0
                    .iter()
                    .filter(|(_, value)| **value != 0.0)
                    .collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `/metrics` shows it, and holds that for so many minutes.
    pub fn hold(&mut self, minutes: i64, what: &str, shown: impl Fn(&Page) -> bool) {
        let page = self.wait(what, shown);
        self.film.hold(Some(&page), minutes);
    }

    /// All that was produced has come to its end, and nothing is wrong.
    pub fn hold_well(&mut self, minutes: i64, documents: usize) {
        let documents = f64::from(u32::try_from(documents).unwrap());
        self.hold(minutes, "all is well", |page| {
            done(page) == documents
                && page.sum("tcbert_lag_records", &[]) == 0.0
                && page.sum("tcbert_well", &[]) == 4.0
                && page.sum("tcbert_in_flight_documents", &[]) == 0.0
        });
    }

    /// Why the worker is not ready.
    pub fn readiness(&self) -> String {
        operations::get(self.admin.address().port(), "/readyz").unwrap()
    }
}

/// Documents that came to their end.
pub fn done(page: &Page) -> f64 {
    page.sum("tcbert_documents_total", &[])
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.gate.open();
        self.shutdown.cancel();
        let running = self.running.take().unwrap();
        let ending = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, running).await });
        if !std::thread::panicking() {
            assert_eq!(ending.unwrap().unwrap().unwrap(), Ending::Stopped);
        }
    }
}

/// The usual engine with a model that is no work.
fn engine(settings: &Settings, gate: &Gate) -> Engine {
    let bundle = settings.model.open_bundle().unwrap();
    let tokenizer = Arc::new(PromptTokenizer::from_file(&bundle.tokenizer_path()).unwrap());
    let hidden_size = bundle.manifest().hidden_size;
    let identity = ModelIdentity {
        fingerprint: bundle.fingerprint().to_owned(),
        max_tokens: bundle.manifest().max_tokens,
        hidden_size,
    };
    let tagger = Tagger::new(&settings.tagging, tokenizer, &identity).unwrap();
    let model = GatedModel {
        model: TwinModel::new(hidden_size),
        gate: gate.clone(),
    };
    Engine::with_models(bundle, tagger, vec![Box::new(model)]).unwrap()
}
