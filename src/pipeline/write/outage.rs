//! Whether records wait for a store that is away or a dead letter that cannot be kept, for those who ask
//! if the worker is ready. Knows neither: it is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::StoreError;
use crate::telemetry::{Health, LogLimit, Part};

/// What is there again within this time was busy, not away.
pub(in crate::pipeline) const GRACE: Duration = Duration::from_secs(5);

/// How often an outage is logged while it lasts.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// The note of one run.
#[derive(Debug)]
pub(in crate::pipeline) struct Outage {
    health: Health,
    /// Whether anybody asks if the worker is ready.
    is_seen: bool,
    /// Whether the store is away: looked at after each write.
    lasts: AtomicBool,
    /// When a failed write was last logged: many may be in flight.
    logged: LogLimit,
    /// Dead letters that have waited for longer than [`GRACE`]. Health is set while this is locked.
    waiting: Mutex<usize>,
}

impl Outage {
    pub(in crate::pipeline) fn new(health: Option<Health>) -> Self {
        Self {
            is_seen: health.is_some(),
            health: health.unwrap_or_default(),
            lasts: AtomicBool::new(false),
            logged: LogLimit::new(LOG_EVERY),
            waiting: Mutex::new(0),
        }
    }

    /// A write failed that has been tried for `since` already.
    pub(in crate::pipeline) fn failed(&self, failure: &StoreError, since: Duration) {
        // A store that is full or rejects everything does not come back by itself: that need not be waited for.
        if since >= GRACE || matches!(failure, StoreError::Full(_) | StoreError::Rejected(_)) {
            self.lasts.store(true, Ordering::Release);
            let reason = format!("documents wait for the store: {failure}");
            self.health.set_trouble(Part::Store, reason);
        }
    }

    /// Whether a failed write is to be logged, as one is every [`LOG_EVERY`].
    pub(in crate::pipeline) fn is_to_be_logged(&self) -> bool {
        self.logged.is_due(Instant::now())
    }

    /// Whether anybody asks if the worker is ready.
    pub(in crate::pipeline) fn is_seen(&self) -> bool {
        self.is_seen
    }

    /// Whether documents have waited for the store for longer than [`GRACE`], or wait for a full one.
    pub(in crate::pipeline) fn lasts(&self) -> bool {
        self.lasts.load(Ordering::Acquire)
    }

    /// A write was accepted.
    pub(in crate::pipeline) fn over(&self) {
        if self.lasts.swap(false, Ordering::AcqRel) {
            self.health.set_well(Part::Store);
        }
    }

    /// A dead letter has waited for longer than [`GRACE`], and waits until the guard is dropped.
    pub(in crate::pipeline) fn dead_letter_waits(&self) -> WaitingDeadLetter<'_> {
        let mut waiting = self.waiting.lock();
        *waiting += 1;
        self.health.set_trouble(
            Part::DeadLetters,
            "rejected records wait for the dead-letter topic or the spool folder; the log says why",
        );
        WaitingDeadLetter(self)
    }
}

/// A dead letter that waits.
#[derive(Debug)]
pub(in crate::pipeline) struct WaitingDeadLetter<'a>(&'a Outage);

impl Drop for WaitingDeadLetter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        *waiting -= 1;
        if *waiting == 0 {
            self.0.health.set_well(Part::DeadLetters);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> (Health, Outage) {
        let health = Health::new();
        health.set_started();
        (health.clone(), Outage::new(Some(health)))
    }

    #[test]
    fn a_short_trouble_is_none_and_an_outage_ends_with_the_first_write() {
        let (health, outage) = started();
        let away = StoreError::Transient("connection refused".to_owned());
        outage.failed(&away, Duration::from_secs(1));
        assert!(health.is_ready());
        outage.failed(&away, GRACE);
        assert!(!health.is_ready() && outage.lasts());
        outage.over();
        assert!(health.is_ready());
        outage.failed(&StoreError::Full("disk".to_owned()), Duration::ZERO);
        assert!(!health.is_ready());
    }

    #[test]
    fn a_worker_is_ready_again_once_neither_store_nor_dead_letters_are_waited_for() {
        let (health, outage) = started();
        let (first, second) = (outage.dead_letter_waits(), outage.dead_letter_waits());
        assert!(!health.is_ready());
        outage.failed(&StoreError::Full("disk".to_owned()), Duration::ZERO);
        drop(first);
        outage.over();
        assert!(!health.is_ready(), "one still waits");
        outage.failed(&StoreError::Full("disk".to_owned()), Duration::ZERO);
        drop(second);
        assert!(!health.is_ready(), "the store is still full");
        outage.over();
        assert!(health.is_ready());
    }
}
