//! `demo`: the whole pipeline on an embedded broker and store, with the bundled model and sample documents.
//!
//! Nothing is simulated but the broker's cluster: records go through the same source, stages, store
//! and commits as in `run`. What ought to come out is computed from the samples alone and compared.

mod report;
mod samples;

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::assemble::{self, Engine};
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::cli::terminal::runtime::{block_on, shutdown_signal};
use crate::decode::DecodeSettings;
use crate::kafka::{DeadLetterProducer, EmbeddedBroker, KafkaSource, Properties};
use crate::pipeline::{self, Counters};
use crate::settings::Settings;
use crate::store::{PointFilter, Store, StoreKind};
use crate::telemetry::Metrics;
use report::{Report, Summary};
use samples::{DEAD_LETTER_TOPIC, Script};

/// Partitions of the demo's topic.
const PARTITIONS: i32 = 4;

/// Topic of the sample documents.
const TOPIC: &str = "documents";

/// Longest that the demo waits for its records.
const PATIENCE: Duration = Duration::from_secs(120);

/// Show the whole pipeline on an embedded broker and store with sample documents.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(settings: Settings, arguments: &Arguments) -> Result<(), Failure> {
    let report = block_on(async {
        let interrupted = shutdown_signal()?;
        tokio::select! {
            report = demo(settings) => report,
            () = interrupted.cancelled() => Err(Failure::failed("interrupted; nothing is left behind")),
        }
    })?;
    if arguments.json {
        output::json(&report.summary)?;
    } else {
        report.show()?;
    }
    report.check()
}

async fn demo(mut settings: Settings) -> Result<Report, Failure> {
    let started = Instant::now();
    let script = Script::of_samples();
    let expectation = script.expectation();

    let spinner = output::spinner("starting broker, store and model");
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::failed(format!("no temporary folder: {error}")))?;
    let broker = EmbeddedBroker::start(&[(TOPIC, PARTITIONS), (DEAD_LETTER_TOPIC, 1)])
        .map_err(Failure::failed)?;
    configure(&mut settings, &broker, folder.path());
    let engine = assemble::load_engine(settings.clone()).await?;
    let store = assemble::open_store_for_run(&settings, &engine.expectation()).await?;
    spinner.finish_and_clear();

    let producing = Instant::now();
    let records = script.records();
    let produced = records.len();
    broker
        .produce(TOPIC, records)
        .await
        .map_err(Failure::failed)?;
    let counters = Arc::new(Counters::default());
    let ran = run_until_done(&settings, engine, store.clone(), counters.clone(), produced).await;
    let seconds = producing.elapsed().as_secs_f64();
    ran?;
    let dead_letters = broker
        .read_dead_letters(&settings.kafka)
        .map_err(Failure::failed)?;

    let mut engine = Engine::load(&settings)?;
    let outcome = Report::gather(&mut engine, store.as_ref(), &expectation, dead_letters).await?;
    let points = store
        .count(PointFilter::default())
        .await
        .map_err(Failure::failed)?;
    store.close().await.map_err(Failure::failed)?;
    let counts = counters.snapshot();
    let summary = Summary {
        produced: produced as u64,
        tagged: counts.tagged,
        written: counts.written,
        deleted: counts.deleted,
        superseded: counts.superseded,
        dead_lettered: counts.dead_lettered,
        points,
        expected_points: expectation.documents.len() as u64,
        accuracy: outcome.accuracy(),
        search_first_hit_share: outcome.search_share,
        truncated: counts.truncated,
        unknown_tokens: counts.unknown_tokens,
        documents_per_second: counts.accounted_for() as f64 / seconds.max(f64::EPSILON),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(Report { summary, outcome })
}

/// The user's settings, pointed at the embedded broker and store.
fn configure(settings: &mut Settings, broker: &EmbeddedBroker, folder: &std::path::Path) {
    settings.kafka.brokers = broker.bootstrap_servers();
    settings.kafka.topic = TOPIC.to_owned();
    settings.kafka.group_id = "demo".to_owned();
    settings.kafka.properties = Properties::default();
    settings.kafka.dead_letter_topic = DEAD_LETTER_TOPIC.to_owned();
    // The samples have the built-in layout, whatever the user's documents look like.
    settings.decode = DecodeSettings::default();
    settings.store.kind = StoreKind::Embedded;
    settings.dead_letter.spool_dir = folder.join("spool").display().to_string();
    settings.store.path = folder.join("store");
    settings.store.apply_migrations = true;
    settings.tagging.taxonomy = "news".to_owned();
}

/// Runs the pipeline until every record is accounted for.
async fn run_until_done(
    settings: &Settings,
    engine: Engine,
    store: Arc<dyn Store>,
    counters: Arc<Counters>,
    produced: usize,
) -> Result<(), Failure> {
    let kafka = settings.kafka.clone();
    let source = tokio::task::spawn_blocking(move || KafkaSource::start(&kafka))
        .await
        .map_err(Failure::failed)?
        .map_err(Failure::failed)?;
    let dead_letters = DeadLetterProducer::start(&settings.kafka, &settings.dead_letter)
        .map_err(Failure::failed)?;
    let metrics = Metrics::new().map_err(Failure::failed)?;
    let stages = engine.into_stages(
        settings,
        Arc::new(source),
        store,
        Arc::new(dead_letters),
        metrics,
    )?;
    let shutdown = CancellationToken::new();
    let watch = tokio::spawn(watch(counters.clone(), produced as u64, shutdown.clone()));
    let outcome = pipeline::run(stages, assemble::wiring(settings), counters, shutdown).await;
    let complete = watch.await.unwrap_or(false);
    outcome.map_err(Failure::failed)?;
    if complete {
        Ok(())
    } else {
        Err(Failure::failed(format!(
            "not every record was accounted for within {} s; run it again with TCBERT__LOG__LEVEL=info to see where it stands",
            PATIENCE.as_secs()
        )))
    }
}

/// Shows progress and ends the run when everything is accounted for; false when patience ran out.
async fn watch(counters: Arc<Counters>, produced: u64, shutdown: CancellationToken) -> bool {
    /// How often progress is looked at.
    const TICK: Duration = Duration::from_millis(50);
    let bar = output::bar(produced, "tagging");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let done = counters.snapshot().accounted_for();
        bar.set_position(done);
        if done >= produced || Instant::now() >= deadline || shutdown.is_cancelled() {
            bar.finish_and_clear();
            shutdown.cancel();
            return done >= produced;
        }
        tokio::time::sleep(TICK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_hold_all_that_the_demo_shows() {
        let script = Script::of_samples();
        let expectation = script.expectation();
        assert!(script.records().len() >= 306);
        assert!(expectation.documents.len() >= 300);
        assert_eq!(expectation.deleted.len(), 1);
        assert_eq!(samples::queries().len(), 50);
    }
}
