//! One run of the real pipeline over a topic of the broker, watched from outside.

pub(super) mod broker;
pub(super) mod probe;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::error::BenchError;
use super::lent::Lent;
use crate::assemble::{self, Engine};
use crate::kafka::{KafkaSource, Properties};
use crate::model::{Bundle, Model};
use crate::pipeline::{self, Counters, Counts};
use crate::score::Tagger;
use crate::settings::Settings;
use crate::source::MemoryDeadLetters;
use crate::store::counting::CountingStore;
use crate::store::{Store, StoreKind};
use crate::telemetry::Metrics;
use broker::Fill;
use probe::{Notes, Probe};

/// Longest that a run may stand still.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether the run is over; what is measured is noted by the probe.
const TICK: Duration = Duration::from_millis(100);

/// Where a run's points go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Counted and dropped.
    Counting,
    /// The embedded store in a folder of its own.
    Embedded,
    /// The store that the settings name.
    Configured,
}

/// What a run is made of.
pub(super) struct Plan<'a> {
    pub(super) settings: &'a Settings,
    pub(super) bundle: &'a Bundle,
    pub(super) tagger: Tagger,
    pub(super) models: Vec<Box<dyn Model>>,
    pub(super) brokers: &'a str,
    /// What the topic was, or is being, filled with.
    pub(super) fill: &'a Fill,
    pub(super) target: Target,
}

/// What was seen of a run.
pub(super) struct Seen {
    pub(super) notes: Notes,
    pub(super) counts: Counts,
}

impl Seen {
    /// Tokens of texts and prompts by tokens of the batches.
    pub(super) fn padding_efficiency(&self) -> f64 {
        self.counts.tokens as f64 / (self.counts.padded_tokens as f64).max(1.0)
    }
}

/// Lends all models to a run.
pub(super) fn lend(models: &[Lent]) -> Vec<Box<dyn Model>> {
    models
        .iter()
        .map(|model| Box::new(model.clone()) as Box<dyn Model>)
        .collect()
}

/// Runs until every document of the topic is durable.
///
/// # Errors
/// When a stage fails or nothing moves for too long.
pub(super) async fn pipeline(plan: Plan<'_>) -> Result<Seen, BenchError> {
    let folder = tempfile::tempdir().map_err(BenchError::setup)?;
    let settings = settings_of(&plan, folder.path());
    let engine = Engine::with_models(plan.bundle.clone(), plan.tagger, plan.models)
        .map_err(BenchError::setup)?;
    let store: Arc<dyn Store> = match plan.target {
        Target::Counting => Arc::new(CountingStore::default()),
        Target::Embedded | Target::Configured => {
            assemble::open_store_for_run(&settings, &engine.expectation())
                .await
                .map_err(BenchError::setup)?
        }
    };
    // How long a document takes says something only where documents arrive evenly.
    let arrive_evenly = plan.fill.per_second.is_some();
    let probe = Arc::new(Probe::new(store.clone(), arrive_evenly));
    let kafka = settings.kafka.clone();
    let source = tokio::task::spawn_blocking(move || KafkaSource::start(&kafka))
        .await
        .map_err(BenchError::setup)?
        .map_err(BenchError::setup)?;
    // Made-up documents are never refused: one that is ends the run.
    let dead_letters = MemoryDeadLetters::default();
    let metrics = Metrics::new().map_err(BenchError::setup)?;
    let stages = engine
        .into_stages(
            &settings,
            Arc::new(source),
            probe.clone(),
            Arc::new(dead_letters),
            metrics,
        )
        .map_err(BenchError::setup)?;
    let shutdown = CancellationToken::new();
    let counters = Arc::new(Counters::default());
    let watch = tokio::spawn(watch(probe.clone(), plan.fill.documents, shutdown.clone()));
    let outcome = pipeline::run(
        stages,
        assemble::wiring(&settings),
        counters.clone(),
        shutdown,
    )
    .await;
    let complete = watch.await.unwrap_or(false);
    outcome.map_err(BenchError::failed)?;
    store.close().await.map_err(BenchError::failed)?;
    let counts = counters.snapshot();
    if !complete || counts.dead_lettered > 0 {
        return Err(BenchError::failed(format!(
            "{} of {} documents were written and {} dead-lettered",
            probe.total(),
            plan.fill.documents,
            counts.dead_lettered
        )));
    }
    Ok(Seen {
        notes: probe.notes(),
        counts,
    })
}

fn settings_of(plan: &Plan<'_>, folder: &Path) -> Settings {
    let mut settings = plan.settings.clone();
    plan.brokers.clone_into(&mut settings.kafka.brokers);
    plan.fill.topic.clone_into(&mut settings.kafka.topic);
    // Each run reads the topic from its beginning.
    settings.kafka.group_id = format!("bench-{}", uuid::Uuid::new_v4());
    if plan.fill.per_second.is_some() {
        // The mock broker lets a fetch that finds nothing wait for its whole time, whatever arrives meanwhile.
        settings.kafka.properties = Properties::from_pairs([("fetch.wait.max.ms", "10")]);
    }
    settings.store.apply_migrations = true;
    if plan.target == Target::Embedded {
        settings.store.kind = StoreKind::Embedded;
        settings.store.path = folder.join("store");
    }
    settings
}

/// Ends the run once all is written; false when nothing moved for too long.
async fn watch(probe: Arc<Probe>, documents: usize, shutdown: CancellationToken) -> bool {
    let mut seen = 0;
    let mut moved = Instant::now();
    while !shutdown.is_cancelled() {
        let total = probe.total();
        if total >= documents || moved.elapsed() > PATIENCE {
            shutdown.cancel();
            return total >= documents;
        }
        if total > seen {
            seen = total;
            moved = Instant::now();
        }
        tokio::time::sleep(TICK).await;
    }
    false
}
