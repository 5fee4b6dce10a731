//! How a run goes on and ends: commits on a timer, the reasons to end, the drain, the last commit, the
//! joining of what was started. Knows nothing of what a stage does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::context::{Context, Ending, PipelineError, Wiring};
use super::intake::IntakeState;
use crate::source::{CommitMode, SourceError};

/// Pause between two attempts at the last commit.
const LAST_COMMIT_PAUSE: Duration = Duration::from_millis(200);

/// What must be joined at the end.
pub(super) struct Running {
    pub(super) intake: std::thread::JoinHandle<()>,
    pub(super) threads: Vec<std::thread::JoinHandle<()>>,
    pub(super) writer: tokio::task::JoinHandle<()>,
    pub(super) refuser: tokio::task::JoinHandle<()>,
}

/// Commits on a timer until there is a reason to end.
pub(super) async fn supervise(
    context: &Arc<Context>,
    intake: &IntakeState,
    wiring: &Wiring,
    shutdown: &CancellationToken,
) -> Ending {
    let mut ticks = tokio::time::interval(wiring.commit_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                commit(context, CommitMode::Background).await;
                context.metrics.in_flight(context.ledger.in_flight());
            }
            () = context.wake.notified() => {}
            () = shutdown.cancelled() => return Ending::Stopped,
        }
        if context.failure.lock().is_some() {
            return Ending::Stopped;
        }
        if intake.ended.load(Ordering::Acquire) && context.ledger.in_flight() == 0 {
            return Ending::Complete;
        }
    }
}

/// Commits what has become durable; false where that failed and may be tried again. Waiting, it also
/// waits for what was handed over before: the source may not have committed that yet.
async fn commit(context: &Arc<Context>, mode: CommitMode) -> bool {
    let offsets = context.ledger.committable();
    if offsets.is_empty() && mode == CommitMode::Background {
        return true;
    }
    let source = context.source.clone();
    let committing = offsets.clone();
    let outcome = tokio::task::spawn_blocking(move || source.commit(&committing, mode)).await;
    match outcome {
        Ok(Ok(())) => {
            context.ledger.mark_committed(&offsets);
        }
        Ok(Err(error @ SourceError::Fatal(_))) => context.fail(error.into()),
        Ok(Err(error)) => {
            tracing::warn!(error = %error, "a commit failed and is tried again");
            return false;
        }
        Err(error) => context.fail(PipelineError::Thread(format!(
            "the commit ended early: {error}"
        ))),
    }
    true
}

/// The last commit, made again while there is time: what it leaves out is done once more.
async fn commit_last(context: &Arc<Context>, within: Duration) {
    let deadline = Instant::now() + within;
    while !commit(context, CommitMode::Wait).await {
        if Instant::now() >= deadline {
            tracing::warn!("the last offsets were not committed; the next start repeats some");
            return;
        }
        tokio::time::sleep(LAST_COMMIT_PAUSE).await;
    }
}

/// Drains, commits, leaves the group and joins what was started.
pub(super) async fn finish(
    context: &Arc<Context>,
    intake: &Arc<IntakeState>,
    running: Running,
    ending: Ending,
    drain: Duration,
) -> Result<Ending, PipelineError> {
    let started = Instant::now();
    let failed = context.failure.lock().is_some();
    context.draining.fetch_add(1, Ordering::AcqRel);
    context.source.stop();
    intake.stopping.store(true, Ordering::Release);
    if failed {
        // What is in flight may depend on what has failed: it is delivered again at the next start.
        context.abandoned.cancel();
    } else {
        tracing::info!(in_flight = context.ledger.in_flight(), "draining");
        if !drain_ledger(context, drain).await {
            context.fail(PipelineError::NotDrained(context.ledger.in_flight()));
            context.abandoned.cancel();
        }
    }
    let left = drain.saturating_sub(started.elapsed());
    commit_last(context, if failed { Duration::ZERO } else { left }).await;
    context.ledger.close();
    let closing = context.source.clone();
    if tokio::task::spawn_blocking(move || closing.close())
        .await
        .is_err()
    {
        tracing::warn!("the source did not close in order");
    }
    intake.closed.store(true, Ordering::Release);
    join(context, running).await;
    tracing::info!(seconds = started.elapsed().as_secs_f32(), "stopped");
    match context.failure.lock().take() {
        Some(error) => Err(error),
        None => Ok(ending),
    }
}

/// Waits until nothing is in flight; false when the bound has passed or something has failed.
async fn drain_ledger(context: &Arc<Context>, bound: Duration) -> bool {
    let waiting = context.clone();
    let mut empty = tokio::task::spawn_blocking(move || waiting.ledger.wait_until_empty(bound));
    loop {
        tokio::select! {
            drained = &mut empty => return drained.unwrap_or(false),
            // What has failed will not get done by waiting; closing the ledger ends the wait.
            () = context.wake.notified() => if context.failure.lock().is_some() {
                return false;
            },
        }
    }
}

/// Joins all threads and tasks; after a failure those that are stuck are left behind.
async fn join(context: &Arc<Context>, running: Running) {
    /// How long a thread may take to notice that the pipeline has ended.
    const JOIN_BOUND: Duration = Duration::from_secs(5);
    let Running {
        intake,
        threads,
        writer,
        refuser,
    } = running;
    let panicked = tokio::task::spawn_blocking(move || {
        std::iter::once(intake)
            .chain(threads)
            .filter_map(|thread| thread.join().err())
            .count()
    });
    let tasks = async {
        let panicked = panicked.await.unwrap_or(1);
        let ended = [writer.await, refuser.await];
        panicked + ended.iter().filter(|outcome| outcome.is_err()).count()
    };
    match tokio::time::timeout(JOIN_BOUND, tasks).await {
        Ok(0) => {}
        Ok(count) => context.fail(PipelineError::Thread(format!(
            "{count} threads ended by a panic; this is a defect of the worker, please report it with the log"
        ))),
        Err(_) => tracing::warn!("some threads are still busy and are left behind"),
    }
}
