//! Bounds of the whole.

use std::time::Duration;

use serde::Deserialize;

use crate::bounds::{Violation, check_range};

/// The section `pipeline`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineSettings {
    /// Records delivered and not yet durable, at most.
    pub max_in_flight_records: usize,
    /// Bytes of those records, at most; a larger single record passes alone.
    pub max_in_flight_bytes: usize,
    /// Records above the watermark, finished ones included, at most.
    pub max_uncommitted_records: usize,
    /// Threads that decode and tokenise.
    pub prepare_threads: usize,
    /// Texts whose answers are kept for when they come again; 0 for none.
    pub repeated_texts: usize,
    /// How long an incomplete write waits for company, counted from the write before, at least (see `Pace`); `None`
    /// for what the store likes.
    pub write_linger_ms: Option<u64>,
    /// How long a shutdown waits for what is in flight.
    pub drain_ms: u64,
}

impl Default for PipelineSettings {
    fn default() -> Self {
        Self {
            max_in_flight_records: 8192,
            max_in_flight_bytes: 64 * 1024 * 1024,
            max_uncommitted_records: 200_000,
            prepare_threads: 1,
            repeated_texts: 4096,
            write_linger_ms: None,
            drain_ms: 20_000,
        }
    }
}

impl PipelineSettings {
    /// Notes values that are out of bounds.
    pub fn validate(&self, violations: &mut Vec<Violation>) {
        check_range(
            violations,
            "max_in_flight_records",
            self.max_in_flight_records,
            1,
            1_000_000,
        );
        check_range(
            violations,
            "max_in_flight_bytes",
            self.max_in_flight_bytes,
            1024 * 1024,
            16 << 30,
        );
        check_range(
            violations,
            "max_uncommitted_records",
            self.max_uncommitted_records,
            1,
            10_000_000,
        );
        check_range(
            violations,
            "repeated_texts",
            self.repeated_texts,
            0,
            1_000_000,
        );
        check_range(violations, "prepare_threads", self.prepare_threads, 1, 64);
        if let Some(linger_ms) = self.write_linger_ms {
            check_range(violations, "write_linger_ms", linger_ms, 0, 1000);
        }
        check_range(violations, "drain_ms", self.drain_ms, 0, 600_000);
    }

    pub(super) fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }
}
