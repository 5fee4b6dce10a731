//! The section `pipeline` of the configuration.

use std::time::Duration;

use crate::keys::section;

section! {
    /// Bounds of the whole: what is in flight between the source and the store.
    pub struct PipelineSettings in "pipeline" {
        /// Records delivered and not yet durable, at most. When it is reached consumption pauses.
        max_in_flight_records: usize = 8192, in 1..=1_000_000;
        /// Bytes of those records, at most; a larger single record passes alone.
        max_in_flight_bytes: usize = 64 << 20, in 1 << 20..=16 << 30;
        /// Records above the lowest one that is not durable yet, finished ones included, at most: what has to be
        /// processed again after a kill.
        max_uncommitted_records: usize = 200_000, in 1..=10_000_000;
        /// Threads that decode and tokenise.
        prepare_threads: usize = 1, in 1..=64;
        /// Texts whose predictions are kept, so that the same text under another id needs no model; about 2 KB each
        /// with vectors of 256 numbers. 0 keeps none.
        repeated_texts: usize = 4096, in 0..=1_000_000;
        /// Milliseconds that an incomplete write waits for company, counted from the write before: a document that
        /// comes after a pause is written at once. Where documents queue for the model it waits longer, half as long
        /// as its first one has been in flight, at most five times this. Left out: 200 for the embedded store, where
        /// a write costs dozens of synchronised files however few its points, 20 for a server.
        write_linger_ms: Option<u64> = None, example 200, in 0..=1000;
        /// Milliseconds that a shutdown waits for what is in flight; what is not done by then is delivered again at
        /// the next start.
        drain_ms: u64 = 20_000, in 0..=600_000;
    }
}

impl PipelineSettings {
    pub(super) fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }
}
