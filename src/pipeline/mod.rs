//! The whole: wires the stages with bounded channels, decides when to commit, drain and stop.
//!
//! The only module that sees every stage. Records flow through
//!
//! ```text
//! source -> intake -> prepare (threads) -> batches -> infer (threads) -> writer -> ledger -> commit
//!                        `-> tombstones ----------------------------------^
//!                        `-> refusals -> dead letters -> ledger
//! ```
//!
//! What is admitted by the intake stays in the ledger until it is durable; the ledger's budget bounds
//! the memory of everything between.

mod acceptance;
mod batches;
mod building;
mod content;
mod counters;
mod dead_letters;
mod ending;
mod future_times;
mod infer;
mod intake;
mod ledger;
mod outage;
mod pace;
mod prepare;
mod repeats;
mod settings;
mod throttle;
mod upkeep;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

pub use counters::{Counter, Counters, Counts};
pub(crate) use infer::answer_of;
pub use settings::PipelineSettings;
pub use throttle::Throttle;
pub use upkeep::{end_abandoned_bulk, remove_expired_markers};

use crate::batch::{BatchPlanner, BatchSettings};
use crate::decode::{DecodeError, Decoder, TextSettings};
use crate::model::Model;
use crate::score::{Tagger, TaggerError};
use crate::source::{DeadLetterError, DeadLetterSink, Source, SourceError, SourceRecord};
use crate::store::point::Provenance;
use crate::store::{Store, StoreError};
use crate::telemetry::{Health, Metrics};

use acceptance::Acceptance;
use batches::Batches;
use building::Building;
use dead_letters::{Refusal, run_refuser};
use ending::{finish, supervise};
use future_times::FutureTimes;
use intake::{IntakeState, spawn_intake};
use ledger::{Budget, Ledger, Ticket};
use outage::Outage;
use prepare::{Prepared, spawn_prepare};
use repeats::Repeats;
use write::{WriterSettings, run_writer};

/// Chunks of records between intake and preparing threads.
const RECORD_CHUNKS: usize = 4;

/// Chunks of prepared documents that wait to be gathered into batches.
const DOCUMENT_CHUNKS: usize = 4;

/// Refused records that wait for the dead-letter producer.
const REFUSALS: usize = 64;

/// Built stages, ready to be wired.
pub struct Stages {
    /// Where records come from.
    pub source: Arc<dyn Source>,
    /// Bytes to documents.
    pub decoder: Decoder,
    /// What the model reads of a document.
    pub text: TextSettings,
    /// Documents to topics and embeddings.
    pub tagger: Tagger,
    /// One model for each inference thread.
    pub models: Vec<Box<dyn Model>>,
    /// What every point tells of where it came from.
    pub provenance: Provenance,
    /// Where points go.
    pub store: Arc<dyn Store>,
    /// Where refused records go.
    pub dead_letters: Arc<dyn DeadLetterSink>,
    /// Where the work is counted.
    pub metrics: Metrics,
}

/// How stages are wired.
#[derive(Debug, Clone)]
pub struct Wiring {
    /// Bounds of the whole.
    pub pipeline: PipelineSettings,
    /// Bounds of batches.
    pub batch: BatchSettings,
    /// Points of one write.
    pub batch_points: usize,
    /// Writes in flight.
    pub write_concurrency: usize,
    /// How long an incomplete write waits for company, counted from the write before.
    pub write_linger: Duration,
    /// How often offsets are committed.
    pub commit_interval: Duration,
    /// How long a revocation waits for what is in flight.
    pub revoke_drain: Duration,
    /// How far a record's time may lie in the future; a later one counts as none.
    pub future_tolerance: Duration,
    /// How fast records may enter; `None` for as fast as they come.
    pub throttle: Option<Arc<Throttle>>,
    /// Told while the store takes no writes; `None` where nobody asks.
    pub health: Option<Health>,
}

/// Why the pipeline stopped by itself; what was committed is durable all the same.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The source cannot go on.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source's thread ended without a word.
    #[error(
        "the source ended without saying why; what was not committed is delivered again at the next start"
    )]
    SourceVanished,
    /// The model fails on every document.
    #[error(
        "{0}; every document fails, so the worker stops; what was in flight is delivered again at the next start"
    )]
    Model(TaggerError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(StoreError),
    /// The dead letters cannot be used.
    #[error(transparent)]
    DeadLetters(DeadLetterError),
    /// A thread could not be started, or ended by a panic.
    #[error("{0}")]
    Thread(String),
    /// The drain's bound has passed with work in flight.
    #[error(
        "{0} records were still in flight when the time to drain had passed; they are delivered again at the next start"
    )]
    NotDrained(usize),
    /// Work was given up because the pipeline stops; never the first error.
    #[error("abandoned")]
    Abandoned,
}

/// What all stages share.
pub(crate) struct Context {
    source: Arc<dyn Source>,
    decoder: Decoder,
    text: TextSettings,
    tagger: Tagger,
    provenance: Provenance,
    store: Arc<dyn Store>,
    dead_letters: Arc<dyn DeadLetterSink>,
    ledger: Ledger,
    repeats: Repeats,
    counters: Arc<Counters>,
    metrics: Metrics,
    outage: Outage,
    acceptance: Acceptance,
    building: Building,
    future_tolerance: Duration,
    future_times: FutureTimes,
    /// Above zero while batches go out at once instead of lingering.
    draining: AtomicUsize,
    /// Work in flight is given up: retry loops end.
    abandoned: CancellationToken,
    failure: Mutex<Option<PipelineError>>,
    wake: Notify,
}

impl Context {
    /// Keeps the first failure and wakes the main task.
    fn fail(&self, error: PipelineError) {
        self.failure.lock().get_or_insert(error);
        self.wake.notify_one();
    }

    /// Batches go out at once while the guard lives.
    fn drain(&self) -> DrainGuard<'_> {
        self.draining.fetch_add(1, Ordering::AcqRel);
        DrainGuard(self)
    }
}

/// Stops the pipeline when the thread or task that holds it panics, instead of leaving records in
/// flight for ever.
struct PanicGuard(Arc<Context>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(PipelineError::Thread(
                "a part of the pipeline panicked; this is a defect of the worker, please report it with the log"
                    .to_owned(),
            ));
        }
    }
}

/// Starts a named thread under a [`PanicGuard`].
fn spawn(
    context: &Arc<Context>,
    name: String,
    body: impl FnOnce(&Arc<Context>) + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, PipelineError> {
    let guard = PanicGuard(context.clone());
    std::thread::Builder::new()
        .name(name)
        .spawn(move || body(&guard.0))
        .map_err(|error| PipelineError::Thread(format!("no thread could be started: {error}")))
}

struct DrainGuard<'a>(&'a Context);

impl Drop for DrainGuard<'_> {
    fn drop(&mut self) {
        self.0.draining.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A record that a stage refused.
#[derive(Debug)]
struct Refused {
    ticket: Ticket,
    record: SourceRecord,
    refusal: Refusal,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A bounded source has delivered everything and all of it is durable.
    Complete,
    /// Asked to stop.
    Stopped,
}

/// Runs until a bounded source ends, `shutdown` is cancelled, or something fails.
///
/// On return everything acknowledged is committed, the source has left its group and no thread is
/// left running (but those stuck in an abandoned call).
///
/// # Errors
/// The first failure of any stage; offsets up to the watermark are committed even then.
pub async fn run(
    stages: Stages,
    wiring: Wiring,
    counters: Arc<Counters>,
    shutdown: CancellationToken,
) -> Result<Ending, PipelineError> {
    let Stages {
        source,
        decoder,
        text,
        tagger,
        models,
        provenance,
        store,
        dead_letters: sink,
        metrics,
    } = stages;
    metrics.expect_dead_letters(DecodeError::CLASSES);
    metrics.expect_dead_letters([dead_letters::MODEL_FAILED, dead_letters::STORE_REJECTED]);
    let context = Arc::new(Context {
        source,
        decoder,
        text,
        tagger,
        provenance,
        store,
        dead_letters: sink,
        repeats: Repeats::new(wiring.pipeline.repeated_texts),
        ledger: Ledger::new(Budget {
            records: wiring.pipeline.max_in_flight_records,
            bytes: wiring.pipeline.max_in_flight_bytes,
            window: wiring.pipeline.max_uncommitted_records,
        }),
        counters,
        metrics,
        outage: Outage::new(wiring.health.clone()),
        acceptance: Acceptance::default(),
        building: Building::default(),
        future_tolerance: wiring.future_tolerance,
        future_times: FutureTimes::default(),
        draining: AtomicUsize::new(0),
        abandoned: CancellationToken::new(),
        failure: Mutex::new(None),
        wake: Notify::new(),
    });
    let intake = Arc::new(IntakeState::default());
    let running = start(&context, &intake, models, &wiring)?;

    let ending = supervise(&context, &intake, &wiring, &shutdown).await;
    finish(&context, &intake, running, ending, wiring.pipeline.drain()).await
}

/// What must be joined at the end.
struct Running {
    intake: std::thread::JoinHandle<()>,
    threads: Vec<std::thread::JoinHandle<()>>,
    writer: tokio::task::JoinHandle<()>,
    refuser: tokio::task::JoinHandle<()>,
}

fn start(
    context: &Arc<Context>,
    intake: &Arc<IntakeState>,
    models: Vec<Box<dyn Model>>,
    wiring: &Wiring,
) -> Result<Running, PipelineError> {
    let (records_out, records) = crossbeam_channel::bounded(RECORD_CHUNKS);
    let (documents_out, documents) = crossbeam_channel::bounded(DOCUMENT_CHUNKS);
    // Bounded by the ledger: the writer takes what has come when a write is due, not as it comes.
    let (writes_out, writes) = mpsc::unbounded_channel();
    let (refusals_out, refusals) = mpsc::channel(REFUSALS);

    let prepared = Prepared {
        documents: documents_out,
        writes: writes_out.clone(),
        refusals: refusals_out.clone(),
    };
    let tagged = infer::Tagged {
        writes: writes_out,
        refusals: refusals_out,
    };
    let mut threads = spawn_prepare(
        context,
        wiring.pipeline.prepare_threads,
        &records,
        &prepared,
    )?;
    drop(prepared);
    let batches = Batches::new(BatchPlanner::new(&wiring.batch), documents);
    threads.extend(infer::spawn_inference(context, models, batches, &tagged)?);
    drop(tagged);

    let writer = tokio::spawn({
        let context = context.clone();
        let settings = WriterSettings {
            batch_points: wiring.batch_points,
            concurrency: wiring.write_concurrency,
            linger: wiring.write_linger,
        };
        async move {
            let _guard = PanicGuard(context.clone());
            if let Err(error) = run_writer(context.clone(), settings, writes).await {
                context.fail(error);
            }
        }
    });
    let refuser = tokio::spawn(run_refuser(context.clone(), refusals));
    let intake = spawn_intake(
        context,
        intake.clone(),
        context.source.events(),
        records_out,
        wiring,
    )?;
    Ok(Running {
        intake,
        threads,
        writer,
        refuser,
    })
}
