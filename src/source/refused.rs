//! A record that cannot be processed, and who keeps it. The Kafka topic of dead letters is one such
//! place, a file beside a backfill another.

use futures::future::BoxFuture;

use super::SourceRecord;

/// A refused record with what was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The record as it was delivered.
    pub record: SourceRecord,
    /// The stage that refused it, such as `decode`.
    pub stage: String,
    /// Short stable name of the reason, such as `invalid_json`.
    pub class: String,
    /// What was wrong and what to do.
    pub message: String,
}

/// A place that keeps refused records.
pub trait DeadLetterSink: Send + Sync {
    /// Keeps a letter; returns once it is durable. What may pass by itself is tried again inside.
    fn send(&self, letter: DeadLetter) -> BoxFuture<'_, Result<(), DeadLetterError>>;
}

/// The dead letters cannot be kept, and trying again does not help.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct DeadLetterError(pub String);

/// Keeps letters in memory: for tests.
#[derive(Debug, Default)]
pub struct MemoryDeadLetters(parking_lot::Mutex<Vec<DeadLetter>>);

impl MemoryDeadLetters {
    /// The dead letters so far.
    pub fn all(&self) -> Vec<DeadLetter> {
        self.0.lock().clone()
    }
}

impl DeadLetterSink for MemoryDeadLetters {
    fn send(&self, letter: DeadLetter) -> BoxFuture<'_, Result<(), DeadLetterError>> {
        self.0.lock().push(letter);
        Box::pin(std::future::ready(Ok(())))
    }
}
