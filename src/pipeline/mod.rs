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

mod context;
mod counters;
mod dead_letters;
mod future_times;
mod in_flight;
mod infer;
mod intake;
mod ledger;
mod prepare;
mod settings;
mod shutdown;
mod throttle;
mod write;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

pub use context::{Ending, PipelineError, Stages, Wiring};
pub use counters::{Counter, Counters, Counts};
pub(crate) use infer::ready::answer_of;
pub use settings::PipelineSettings;
pub use throttle::Throttle;

use crate::batch::BatchPlanner;
use crate::decode::DecodeError;
use crate::model::Model;

use context::{Context, PanicGuard};
use dead_letters::run_refuser;
use future_times::FutureTimes;
use infer::batches::Batches;
use infer::repeats::Repeats;
use intake::{IntakeState, spawn_intake};
use ledger::{Budget, Ledger};
use prepare::{Prepared, spawn_prepare};
use shutdown::{Running, finish, supervise};
use write::acceptance::Acceptance;
use write::building::Building;
use write::outage::Outage;
use write::{WriterSettings, run_writer};

/// Chunks of records between intake and preparing threads.
const RECORD_CHUNKS: usize = 4;

/// Chunks of prepared documents that wait to be gathered into batches.
const DOCUMENT_CHUNKS: usize = 4;

/// Refused records that wait for the dead-letter producer.
const REFUSALS: usize = 64;

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
