//! Cheap counters of the source; who publishes them is not its business.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only grows.
#[derive(Debug, Default)]
pub(in crate::kafka) struct Count(AtomicU64);

impl Count {
    pub(in crate::kafka) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(in crate::kafka) struct Counters {
    pub(in crate::kafka) records: Count,
    pub(in crate::kafka) bytes: Count,
    pub(in crate::kafka) dropped: Count,
    pub(in crate::kafka) skipped: Count,
    pub(in crate::kafka) pauses: Count,
    pub(in crate::kafka) rebalances: Count,
    pub(in crate::kafka) commits: Count,
    pub(in crate::kafka) commit_failures: Count,
}

/// What the source has counted since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceCounters {
    /// Records delivered.
    pub records: u64,
    /// Bytes of keys, values and headers delivered.
    pub bytes: u64,
    /// Records fetched but dropped, since their partition was leaving or the source had stopped.
    pub dropped: u64,
    /// Records behind the range of a bounded source that are no deletions.
    pub skipped: u64,
    /// Times that fetching was paused because the pipeline was behind.
    pub pauses: u64,
    /// Assignments and revocations.
    pub rebalances: u64,
    /// Partition offsets committed in the background.
    pub commits: u64,
    /// Partition offsets that the broker did not take.
    pub commit_failures: u64,
}

impl Counters {
    pub(in crate::kafka) fn snapshot(&self) -> SourceCounters {
        SourceCounters {
            records: self.records.get(),
            bytes: self.bytes.get(),
            dropped: self.dropped.get(),
            skipped: self.skipped.get(),
            pauses: self.pauses.get(),
            rebalances: self.rebalances.get(),
            commits: self.commits.get(),
            commit_failures: self.commit_failures.get(),
        }
    }
}
