//! Looks at a run from outside: when points became durable, how long each took from its record, and
//! how much memory the process held. Must not change what it looks at.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::bench::steady::Progress;
use crate::document::{DocumentId, LatestTime};
use crate::store::{
    Admin, CollectionInfo, PointFilter, PointWrite, SearchHit, Store, StoreError, WriteOutcome,
};

/// A store that notes when its writes became durable.
pub(in crate::bench) struct Probe {
    store: Arc<dyn Store>,
    notes: Mutex<Notes>,
    with_latencies: bool,
}

#[derive(Debug, Clone, Default)]
pub(in crate::bench) struct Notes {
    pub(in crate::bench) progress: Progress,
    /// From each record's timestamp to its durable write; empty where nobody asks, since a number for each document
    /// would be the memory that grows.
    pub(in crate::bench) latencies_ms: Vec<f64>,
}

impl Probe {
    pub(in crate::bench) fn new(store: Arc<dyn Store>, with_latencies: bool) -> Self {
        Self {
            store,
            notes: Mutex::default(),
            with_latencies,
        }
    }

    pub(in crate::bench) fn notes(&self) -> Notes {
        self.notes.lock().clone()
    }

    pub(in crate::bench) fn total(&self) -> usize {
        self.notes.lock().progress.total()
    }
}

impl Store for Probe {
    fn write(
        &self,
        batch: Vec<PointWrite>,
        latest: LatestTime,
    ) -> BoxFuture<'_, Result<WriteOutcome, StoreError>> {
        let timestamps: Vec<i64> = batch
            .iter()
            .map(|write| write.version().timestamp_ms)
            .collect();
        Box::pin(async move {
            let outcome = self.store.write(batch, latest).await?;
            let now_ms = jiff::Timestamp::now().as_millisecond();
            let mut notes = self.notes.lock();
            notes.progress.add(Instant::now(), timestamps.len());
            if self.with_latencies {
                let latencies = timestamps.iter().map(|then| (now_ms - then) as f64);
                notes.latencies_ms.extend(latencies);
            }
            Ok(outcome)
        })
    }

    fn search(
        &self,
        vector: Vec<f32>,
        filter: PointFilter,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<SearchHit>, StoreError>> {
        self.store.search(vector, filter, limit)
    }

    fn count(&self, filter: PointFilter) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.store.count(filter)
    }

    fn fetch(
        &self,
        id: DocumentId,
    ) -> BoxFuture<'_, Result<Option<Map<String, Value>>, StoreError>> {
        self.store.fetch(id)
    }

    fn collection(&self) -> BoxFuture<'_, Result<Option<CollectionInfo>, StoreError>> {
        self.store.collection()
    }

    fn remove_markers(&self, before: jiff::Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.store.remove_markers(before)
    }

    fn admin(&self) -> &dyn Admin {
        self.store.admin()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.store.close()
    }
}

/// Lets the peak of the resident memory begin anew; without effect where the system has no such note.
pub(in crate::bench) fn reset_peak_memory() {
    // 5: see proc(5), clear_refs.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// The peak of the resident memory in MiB; 0 where the system does not say.
pub(in crate::bench) fn peak_memory_mib() -> f64 {
    status_mib("VmHWM:")
}

/// The resident memory that belongs to no file, in MiB; 0 where the system does not say.
pub(in crate::bench) fn anonymous_memory_mib() -> f64 {
    status_mib("RssAnon:")
}

fn status_mib(key: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix(key)?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse()
                .ok()
        })
        .map_or(0.0, |kib: f64| kib / 1024.0)
}

/// Processor time of this process so far, all threads; 0 where the system does not say.
pub(in crate::bench) fn processor_seconds() -> f64 {
    /// Fields after the name in parentheses, see proc(5); the unit is fixed at a hundredth of a second.
    const USER_AND_SYSTEM: [usize; 2] = [11, 12];
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let ticks: f64 = USER_AND_SYSTEM
        .iter()
        .filter_map(|at| fields.get(*at)?.parse::<f64>().ok())
        .sum();
    ticks / TICKS_PER_SECOND
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn work_takes_processor_time_and_memory() {
        let before = processor_seconds();
        let mut numbers: Vec<u64> = (0..4_000_000).collect();
        while processor_seconds() < before + 0.05 {
            numbers.reverse();
        }
        assert!(anonymous_memory_mib() > 30.0, "{}", anonymous_memory_mib());
        assert!(peak_memory_mib() >= anonymous_memory_mib());
        assert_eq!(numbers.len(), 4_000_000);
    }
}
