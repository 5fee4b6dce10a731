//! Counts of a run, shared with whoever shows progress.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A count that many threads add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened to the records of a run.
#[derive(Debug, Default)]
pub struct Counters {
    /// Records taken from the source.
    pub delivered: Counter,
    /// Documents that have their topic and embedding.
    pub tagged: Counter,
    /// Documents tagged as an earlier one of the same text was, without the model.
    pub repeated: Counter,
    /// Points durably written.
    pub written: Counter,
    /// Tombstones durably written.
    pub deleted: Counter,
    /// Documents and tombstones that lost against a newer version, in the store or in the same write.
    pub superseded: Counter,
    /// Records whose time lay in the future and counts as none.
    pub future_times: Counter,
    /// Records durably dead-lettered.
    pub dead_lettered: Counter,
    /// Documents whose text did not fit.
    pub truncated: Counter,
    /// Tokens unknown to the vocabulary.
    pub unknown_tokens: Counter,
    /// Tokens that went through the model, padding left out.
    pub tokens: Counter,
    /// Tokens that went through the model, padding included.
    pub padded_tokens: Counter,
}

/// [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// See [`Counters::delivered`].
    pub delivered: u64,
    /// See [`Counters::tagged`].
    pub tagged: u64,
    /// See [`Counters::repeated`].
    pub repeated: u64,
    /// See [`Counters::written`].
    pub written: u64,
    /// See [`Counters::deleted`].
    pub deleted: u64,
    /// See [`Counters::superseded`].
    pub superseded: u64,
    /// See [`Counters::future_times`].
    pub future_times: u64,
    /// See [`Counters::dead_lettered`].
    pub dead_lettered: u64,
    /// See [`Counters::truncated`].
    pub truncated: u64,
    /// See [`Counters::unknown_tokens`].
    pub unknown_tokens: u64,
    /// See [`Counters::tokens`].
    pub tokens: u64,
    /// See [`Counters::padded_tokens`].
    pub padded_tokens: u64,
}

impl Counters {
    /// The counts at this moment.
    pub fn snapshot(&self) -> Counts {
        Counts {
            delivered: self.delivered.get(),
            tagged: self.tagged.get(),
            repeated: self.repeated.get(),
            written: self.written.get(),
            deleted: self.deleted.get(),
            superseded: self.superseded.get(),
            future_times: self.future_times.get(),
            dead_lettered: self.dead_lettered.get(),
            truncated: self.truncated.get(),
            unknown_tokens: self.unknown_tokens.get(),
            tokens: self.tokens.get(),
            padded_tokens: self.padded_tokens.get(),
        }
    }
}

impl Counts {
    /// Records that need no more work.
    pub fn accounted_for(&self) -> u64 {
        self.written + self.deleted + self.superseded + self.dead_lettered
    }
}
