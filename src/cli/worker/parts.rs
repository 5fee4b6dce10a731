//! Parts of a worker that `run` and `backfill` open alike.

use crate::cli::terminal::failure::Failure;
use crate::kafka::DeadLetterProducer;
use crate::settings::Settings;
use crate::store::Store;

/// The sink of dead letters, once they can be kept: before the worker joins its group.
pub(in crate::cli) async fn open_dead_letters(
    settings: &Settings,
) -> Result<DeadLetterProducer, Failure> {
    let dead_letters = DeadLetterProducer::start(&settings.kafka, &settings.dead_letter)
        .map_err(Failure::failed)?;
    dead_letters.check().await.map_err(Failure::failed)?;
    Ok(dead_letters)
}

/// Says what the store cannot promise.
pub(in crate::cli) fn warn_of(store: &dyn Store) {
    for warning in store.warnings() {
        tracing::warn!("{warning}");
    }
}
