//! Records whose time lies in the future: counted, and warned about now and then. A time in microseconds
//! or an embargo date would otherwise win against every later update and deletion.

use std::time::{Duration, Instant};

use crate::source::SourceRecord;
use crate::telemetry::LogLimit;

/// How often such records are logged while they come.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// When they were logged last.
#[derive(Debug)]
pub(super) struct FutureTimes {
    logged: LogLimit,
}

impl Default for FutureTimes {
    fn default() -> Self {
        Self {
            logged: LogLimit::new(LOG_INTERVAL),
        }
    }
}

impl FutureTimes {
    /// Logs that a record's time counts as none, the first of so many `records`, unless that was said lately.
    pub(super) fn log(&self, record: &SourceRecord, records: u64) {
        if !self.logged.is_due(Instant::now()) {
            return;
        }
        tracing::warn!(
            record = %record.position,
            timestamp_ms = record.timestamp_ms,
            records,
            "a record's time lies in the future; it counts as a record without time \
             (decode.future_tolerance_minutes)"
        );
    }
}
