//! How the pipeline refuses a record: counted and acknowledged only once its dead letter is durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::context::{Context, PanicGuard, PipelineError};
use super::in_flight::InFlight;
use super::write::outage::GRACE;
use crate::source::{DeadLetter, DeadLetterError};
use crate::telemetry::Outcome;
use tokio::sync::mpsc;

/// Every how many refused records one is logged in full; the first ones always are.
const LOG_EVERY: u64 = 100;

/// Refused records that are always logged.
const LOG_FIRST: u64 = 10;

/// Class of a document that the model fails on.
pub(super) const MODEL_FAILED: &str = "model_failed";

/// Class of a record that the store rejects.
pub(super) const STORE_REJECTED: &str = "store_rejected";

/// Dead letters in flight at most.
const REFUSALS_IN_FLIGHT: usize = 256;

static LOGGED: AtomicU64 = AtomicU64::new(0);

/// Why a record is refused.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    /// The stage that refused it.
    pub(super) stage: &'static str,
    /// Short stable name of the reason.
    pub(super) class: &'static str,
    /// What was wrong and what to do.
    pub(super) message: String,
}

/// A record that a stage refuses.
pub(super) type Refused = InFlight<Refusal>;

/// Sends refused records to the dead letters, several at once.
pub(super) async fn run_refuser(context: Arc<Context>, mut refusals: mpsc::Receiver<Refused>) {
    let _guard = PanicGuard(context.clone());
    let mut in_flight = tokio::task::JoinSet::new();
    while let Some(refused) = refusals.recv().await {
        if in_flight.len() >= REFUSALS_IN_FLIGHT {
            in_flight.join_next().await;
        }
        let context = context.clone();
        in_flight.spawn(async move {
            let _guard = PanicGuard(context.clone());
            if let Err(error) = refuse(&context, refused).await {
                context.fail(error);
            }
        });
        while in_flight.try_join_next().is_some() {}
    }
    while in_flight.join_next().await.is_some() {}
}

/// Sends a record to the dead letters and acknowledges it when that is durable.
pub(super) async fn refuse(context: &Arc<Context>, refused: Refused) -> Result<(), PipelineError> {
    let InFlight {
        ticket,
        record,
        body: refusal,
    } = refused;
    let nth = LOGGED.fetch_add(1, Ordering::Relaxed);
    if nth < LOG_FIRST || nth.is_multiple_of(LOG_EVERY) {
        tracing::warn!(
            position = %record.position,
            stage = refusal.stage,
            class = refusal.class,
            reason = %refusal.message,
            "a record goes to the dead letters"
        );
    }
    let letter = DeadLetter {
        record,
        stage: refusal.stage.to_owned(),
        class: refusal.class.to_owned(),
        message: refusal.message,
    };
    tokio::select! {
        outcome = send(context, letter) => outcome.map_err(PipelineError::DeadLetters)?,
        () = context.abandoned.cancelled() => return Err(PipelineError::Abandoned),
    }
    context.counters.dead_lettered.add(1);
    context.metrics.dead_letter(refusal.class);
    context.metrics.documents(Outcome::DeadLettered, 1);
    context.ledger.acknowledge([&ticket]);
    Ok(())
}

/// Sends a dead letter; the worker is not ready while one waits for long, since its partition does.
async fn send(context: &Context, letter: DeadLetter) -> Result<(), DeadLetterError> {
    let mut sending = context.dead_letters.send(letter);
    if let Ok(outcome) = tokio::time::timeout(GRACE, &mut sending).await {
        return outcome;
    }
    let _waiting = context.outage.dead_letter_waits();
    sending.await
}
