//! Why nothing was measured.

use std::fmt::Display;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Something cannot be started.
    #[error("the measurement cannot be set up: {0}")]
    Setup(String),
    /// Something failed under way.
    #[error("the measurement failed: {0}")]
    Failed(String),
}

impl BenchError {
    pub(super) fn setup(error: impl Display) -> Self {
        Self::Setup(error.to_string())
    }

    pub(super) fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }
}
