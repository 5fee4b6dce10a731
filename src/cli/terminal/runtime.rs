//! Runs a command that waits for brokers, stores and signals.

use tokio_util::sync::CancellationToken;

use crate::cli::terminal::failure::Failure;

/// Runs a command that waits for brokers, stores and signals.
///
/// A call that hangs in a vendor's library must not keep the process: what is left behind gets a
/// second.
pub(in crate::cli) fn block_on<T>(
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    const GRACE: std::time::Duration = std::time::Duration::from_secs(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no threads could be started: {error}")))?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(GRACE);
    outcome
}

/// Cancelled by the first SIGTERM or SIGINT; the second ends the process at once.
pub(in crate::cli) fn shutdown_signal() -> Result<CancellationToken, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    /// What a shell reports for a process ended by SIGINT.
    const ENDED_AT_ONCE: i32 = 130;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::failed)?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        for nth in 0_u32.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if nth > 0 {
                std::process::exit(ENDED_AT_ONCE);
            }
            tracing::info!("asked to stop; a second signal ends at once");
            cancelled.cancel();
        }
    });
    Ok(token)
}
