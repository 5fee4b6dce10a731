//! Whether the store is away, for whoever asks if the worker is ready. Knows no store: it is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::store::StoreError;
use crate::telemetry::Health;

/// A store that answers again within this time was busy, not away.
const GRACE: Duration = Duration::from_secs(5);

/// The note of one run.
#[derive(Debug)]
pub(super) struct Outage {
    health: Option<Health>,
    lasts: AtomicBool,
}

impl Outage {
    pub(super) fn new(health: Option<Health>) -> Self {
        Self {
            health,
            lasts: AtomicBool::new(false),
        }
    }

    /// A write failed that has been tried for `since` already.
    pub(super) fn failed(&self, failure: &StoreError, since: Duration) {
        let Some(health) = &self.health else {
            return;
        };
        // A full store does not come back by itself: that need not be waited for.
        if since >= GRACE || matches!(failure, StoreError::Full(_)) {
            self.lasts.store(true, Ordering::Release);
            health.set_not_ready(format!("documents wait for the store: {failure}"));
        }
    }

    /// A write was taken.
    pub(super) fn over(&self) {
        if self.lasts.swap(false, Ordering::AcqRel)
            && let Some(health) = &self.health
        {
            health.set_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_trouble_is_none_and_an_outage_ends_with_the_first_write() {
        let health = Health::new();
        health.set_ready();
        let outage = Outage::new(Some(health.clone()));
        let away = StoreError::Transient("connection refused".to_owned());
        outage.failed(&away, Duration::from_secs(1));
        assert!(health.is_ready());
        outage.failed(&away, GRACE);
        assert!(!health.is_ready());
        outage.over();
        assert!(health.is_ready());
        outage.failed(&StoreError::Full("disk".to_owned()), Duration::ZERO);
        assert!(!health.is_ready());
    }

    #[test]
    fn a_write_does_not_make_ready_what_never_was() {
        let health = Health::new();
        let outage = Outage::new(Some(health.clone()));
        outage.over();
        assert!(!health.is_ready());
    }
}
