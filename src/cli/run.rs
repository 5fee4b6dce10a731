//! `run`: consumes from Kafka until told to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use crate::assemble::{self, Engine};
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::runtime::{block_on, shutdown_signal};
use crate::cli::worker::lost_store::{Claim, Registered, committed_by_group};
use crate::cli::worker::parts::{open_dead_letters, warn_of};
use crate::cli::worker::recreated_topic::count_stored_beyond;
use crate::cli::worker::vitals;
use crate::kafka::KafkaSource;
use crate::pipeline::{self, Counters, Ending, Wiring};
use crate::settings::Settings;
use crate::store::{Store, bulk, upkeep};
use crate::telemetry::{AdminServer, Health, Metrics};

/// How often the progress of a run is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// How often expired markers of deletions are removed.
const MARKER_INTERVAL: Duration = Duration::from_secs(3600);

/// Consume documents from Kafka until told to stop.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Go on at the earliest record where the committed offset has expired, and log what is gone.
    #[arg(long)]
    accept_gap: bool,
    /// Work on a store that lacks what the group has committed, and list the group there from now on.
    #[arg(long)]
    accept_empty_store: bool,
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let mut settings = settings.clone();
    settings.kafka.accept_gap |= arguments.accept_gap;
    block_on(run(&settings, arguments.accept_empty_store))
}

async fn run(settings: &Settings, accept_empty_store: bool) -> Result<(), Failure> {
    let shutdown = shutdown_signal()?;
    let started = Instant::now();
    let metrics = Metrics::new().map_err(Failure::failed)?;
    let health = Health::new();
    let admin = match settings.admin.address().map_err(Failure::usage)? {
        Some(address) => Some(
            AdminServer::start(address, health.clone(), metrics.clone())
                .await
                .map_err(Failure::failed)?,
        ),
        None => None,
    };
    let engine = assemble::load_engine(settings.clone()).await?;
    tracing::info!(
        model = engine.describe(),
        taxonomy = engine.taxonomy().name,
        "model loaded"
    );
    let store = assemble::connect_store(settings).await?;
    let registered = tokio::select! {
        opened = open_store(settings, &engine, &store, accept_empty_store) => opened?,
        () = shutdown.cancelled() => return store.close().await.map_err(Failure::failed),
    };
    let dead_letters = tokio::select! {
        opened = open_dead_letters(settings) => opened?,
        () = shutdown.cancelled() => return store.close().await.map_err(Failure::failed),
    };
    let source = tokio::select! {
        connected = connect(settings, &store, &metrics) => connected?,
        () = shutdown.cancelled() => return store.close().await.map_err(Failure::failed),
    };
    tracing::info!(
        topic = settings.kafka.topic,
        group = settings.kafka.group_id,
        seconds = started.elapsed().as_secs_f32(),
        "ready"
    );
    health.set_started();

    let counters = Arc::new(Counters::default());
    let stages = engine.into_stages(
        settings,
        source.clone(),
        store.clone(),
        Arc::new(dead_letters),
        metrics.clone(),
    );
    let beside = [
        tokio::spawn(log_progress(counters.clone())),
        tokio::spawn(vitals::watch(source, metrics, health.clone())),
        tokio::spawn(remove_markers(
            store.clone(),
            settings.store.tombstone_retention(),
        )),
        tokio::spawn(watch_bulk_mode(store.clone())),
    ];
    let wiring = Wiring {
        health: Some(health.clone()),
        ..assemble::wiring(settings)
    };
    let stop = shutdown.child_token();
    let watching = tokio::spawn(registered.clone().watch(stop.clone()));
    let outcome = pipeline::run(stages?, wiring, counters.clone(), stop).await;
    beside.iter().for_each(tokio::task::JoinHandle::abort);
    watching.abort();
    drop(admin);
    let counts = counters.snapshot();
    tracing::info!(
        delivered = counts.delivered,
        written = counts.written,
        deleted = counts.deleted,
        superseded = counts.superseded,
        dead_lettered = counts.dead_lettered,
        "what this run did"
    );
    let closed = store.close().await;
    match outcome {
        Ok(Ending::Stopped | Ending::Complete) => {
            registered.lost()?;
            closed.map_err(Failure::failed)
        }
        Err(error) => {
            health.set_failed(error.to_string());
            Err(Failure::failed(error))
        }
    }
}

/// Makes the store ready for the group; rejects one that does not hold what the group has committed.
async fn open_store(
    settings: &Settings,
    engine: &Engine,
    store: &Arc<dyn Store>,
    accept_empty_store: bool,
) -> Result<Registered, Failure> {
    warn_of(store.as_ref());
    let claim = Claim::of_group(&settings.kafka, accept_empty_store);
    let committed = async || committed_by_group(&settings.kafka).await;
    claim
        .check(store.as_ref(), &settings.store, committed)
        .await?;
    assemble::prepare_store_for_run(store, settings, &engine.expectation()).await?;
    claim.register(store).await
}

async fn connect(
    settings: &Settings,
    store: &Arc<dyn Store>,
    metrics: &Metrics,
) -> Result<Arc<KafkaSource>, Failure> {
    let (kafka, stored) = (settings.kafka.clone(), count_stored_beyond(store));
    let metrics = metrics.clone();
    let start = move || KafkaSource::start_for_store(&kafka, stored, metrics);
    let source = tokio::task::spawn_blocking(start)
        .await
        .map_err(Failure::failed)?
        .map_err(Failure::failed)?;
    Ok(Arc::new(source))
}

async fn remove_markers(store: Arc<dyn Store>, retention: Duration) {
    upkeep::remove_expired_markers(store.as_ref(), retention, MARKER_INTERVAL).await;
}

async fn watch_bulk_mode(store: Arc<dyn Store>) {
    upkeep::end_abandoned_bulk(store.as_ref(), bulk::LEASE).await;
}

async fn log_progress(counters: Arc<Counters>) {
    let mut before = 0;
    loop {
        tokio::time::sleep(LOG_INTERVAL).await;
        let counts = counters.snapshot();
        let done = counts.accounted_for();
        tracing::info!(
            done,
            superseded = counts.superseded,
            dead_lettered = counts.dead_lettered,
            per_second = (done - before) / LOG_INTERVAL.as_secs(),
            "progress"
        );
        before = done;
    }
}
