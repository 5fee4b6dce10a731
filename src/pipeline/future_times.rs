//! Records whose time lies in the future: counted, and warned about now and then. A time in microseconds
//! or an embargo date would otherwise win against every later update and deletion.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Context;
use crate::source::SourceRecord;

/// How often such records are logged while they come.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// When they were logged last.
#[derive(Debug, Default)]
pub(super) struct FutureTimes {
    logged: Mutex<Option<Instant>>,
}

/// Notes a record whose time counts as none.
pub(super) fn note(context: &Context, record: &SourceRecord) {
    context.counters.future_times.add(1);
    context.metrics.future_times(1);
    let mut logged = context.future_times.logged.lock();
    if logged.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
        return;
    }
    *logged = Some(Instant::now());
    tracing::warn!(
        record = %record.position,
        timestamp_ms = record.timestamp_ms,
        records = context.counters.future_times.get(),
        "a record's time lies in the future; it counts as a record without time \
         (decode.future_tolerance_minutes)"
    );
}
