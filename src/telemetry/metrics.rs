//! Every metric of the worker: its name, what it counts, and the one place where it is recorded.
//! Must not know who records or who reads.

use std::fmt::Write;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram, with_local_recorder,
};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use parking_lot::Mutex;

use super::partitions::{self, PartitionLag};

/// From a tenth of a millisecond, one decoded batch, to a minute, a store that struggles.
const SECONDS_BUCKETS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];
const ROWS_BUCKETS: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];
const RATIO_BUCKETS: [f64; 10] = [0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0];
/// Samples of histograms wait in memory until they are counted into buckets: at least this often.
const BATCHES_PER_UPKEEP: u64 = 256;

/// What became of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Tagged and durably written.
    Written,
    /// A deletion, durably written.
    Deleted,
    /// A document or deletion that lost against a newer version in the store or in the same write.
    Superseded,
    /// Sent to the dead-letter topic and acknowledged there.
    DeadLettered,
    /// Given up with its partition, which another worker now has.
    Abandoned,
}

/// A part of the work whose time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Bytes to a document.
    Decode,
    /// Document to token ids.
    Tokenise,
    /// Time that a document waits for its batch.
    Batch,
    /// One pass of the model.
    Infer,
    /// Passes to topics and embeddings.
    Score,
    /// One write to the store, retries included.
    Write,
    /// One commit of offsets.
    Commit,
    /// From the record's timestamp to the durable write.
    EndToEnd,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Decode,
        Self::Tokenise,
        Self::Batch,
        Self::Infer,
        Self::Score,
        Self::Write,
        Self::Commit,
        Self::EndToEnd,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Tokenise => "tokenise",
            Self::Batch => "batch",
            Self::Infer => "infer",
            Self::Score => "score",
            Self::Write => "write",
            Self::Commit => "commit",
            Self::EndToEnd => "end_to_end",
        }
    }
}

/// The worker's metrics; clones share them. Each instance has a registry of its own.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    batches: AtomicU64,
    known: Known,
    partitions: Mutex<Vec<PartitionLag>>,
}

/// Metrics without labels of changing value, looked up once.
struct Known {
    written: Counter,
    deleted: Counter,
    superseded: Counter,
    dead_lettered: Counter,
    abandoned: Counter,
    truncated: Counter,
    rows: Histogram,
    padding_efficiency: Histogram,
    real_tokens: Counter,
    padding_tokens: Counter,
    unknown_tokens: Counter,
    stages: [Histogram; Stage::ALL.len()],
    in_flight: Gauge,
    store_retries: Counter,
    store_paused: Gauge,
    commits: Counter,
    commit_failures: Counter,
    cache_hits: Counter,
    future_times: Counter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Metrics")
    }
}

impl Metrics {
    /// A fresh registry with every metric at zero.
    ///
    /// # Errors
    /// When the buckets of a histogram are not accepted.
    pub fn new() -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(
                Matcher::Full("tcbert_stage_seconds".to_owned()),
                &SECONDS_BUCKETS,
            )?
            .set_buckets_for_metric(Matcher::Full("tcbert_batch_rows".to_owned()), &ROWS_BUCKETS)?
            .set_buckets_for_metric(
                Matcher::Full("tcbert_padding_efficiency".to_owned()),
                &RATIO_BUCKETS,
            )?
            .build_recorder();
        let known = with_local_recorder(&recorder, || {
            describe();
            gauge!("tcbert_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            // A counter that appears with its first event has no rate for it.
            for kind in ["assigned", "revoked", "lost"] {
                counter!("tcbert_rebalances_total", "kind" => kind).absolute(0);
            }
            Known::register()
        });
        Ok(Self {
            inner: Arc::new(Inner {
                handle: recorder.handle(),
                recorder,
                batches: AtomicU64::new(0),
                known,
                partitions: Mutex::default(),
            }),
        })
    }

    /// Documents that came to their end.
    pub fn documents(&self, outcome: Outcome, count: u64) {
        let known = &self.inner.known;
        let counter = match outcome {
            Outcome::Written => &known.written,
            Outcome::Deleted => &known.deleted,
            Outcome::Superseded => &known.superseded,
            Outcome::DeadLettered => &known.dead_lettered,
            Outcome::Abandoned => &known.abandoned,
        };
        counter.increment(count);
    }

    /// A batch as it went into the model: rows, tokens of the texts, tokens with the padding.
    pub fn batch(&self, rows: usize, real_tokens: usize, padded_tokens: usize) {
        let known = &self.inner.known;
        known.rows.record(approximate(rows));
        known.real_tokens.increment(count(real_tokens));
        let padding = padded_tokens.saturating_sub(real_tokens);
        known.padding_tokens.increment(count(padding));
        if padded_tokens > 0 {
            let ratio = approximate(real_tokens) / approximate(padded_tokens);
            known.padding_efficiency.record(ratio);
        }
        let before = self.inner.batches.fetch_add(1, Ordering::Relaxed);
        if before % BATCHES_PER_UPKEEP == BATCHES_PER_UPKEEP - 1 {
            self.inner.handle.run_upkeep();
        }
    }

    /// Texts that did not fit, and tokens that the vocabulary does not know.
    pub fn texts(&self, truncated: u64, unknown_tokens: u64) {
        self.inner.known.truncated.increment(truncated);
        self.inner.known.unknown_tokens.increment(unknown_tokens);
    }

    /// Documents answered from the cache of repeated texts.
    pub fn cache_hits(&self, documents: u64) {
        self.inner.known.cache_hits.increment(documents);
    }

    /// Records whose time lies too far in the future to be true.
    pub fn future_times(&self, records: u64) {
        self.inner.known.future_times.increment(records);
    }

    /// Time that a part of the work took.
    pub fn stage(&self, stage: Stage, took: Duration) {
        let position = Stage::ALL.iter().position(|other| *other == stage);
        if let Some(histogram) = position.and_then(|at| self.inner.known.stages.get(at)) {
            histogram.record(took.as_secs_f64());
        }
    }

    /// Documents taken from the source and not yet at their end.
    pub fn in_flight(&self, documents: usize) {
        self.inner.known.in_flight.set(approximate(documents));
    }

    /// What is known of all partitions that are assigned; the series of others end.
    pub fn partitions(&self, partitions: Vec<PartitionLag>) {
        *self.inner.partitions.lock() = partitions;
    }

    /// Whether a part of the worker is well.
    pub fn part_is_well(&self, part: &'static str, well: bool) {
        with_local_recorder(&self.inner.recorder, || {
            gauge!("tcbert_well", "part" => part).set(if well { 1.0 } else { 0.0 });
        });
    }

    /// Lets the counters of dead letters exist before the first of them.
    pub fn expect_dead_letters(&self, reasons: impl IntoIterator<Item = &'static str>) {
        with_local_recorder(&self.inner.recorder, || {
            for reason in reasons {
                counter!("tcbert_dead_letters_total", "reason" => reason).absolute(0);
            }
        });
    }

    /// A record sent to the dead-letter topic, by the kind of its fault.
    pub fn dead_letter(&self, reason: &'static str) {
        with_local_recorder(&self.inner.recorder, || {
            counter!("tcbert_dead_letters_total", "reason" => reason).increment(1);
        });
    }

    /// A change of the assignment: `assigned`, `revoked` or `lost`.
    pub fn rebalance(&self, kind: &'static str) {
        with_local_recorder(&self.inner.recorder, || {
            counter!("tcbert_rebalances_total", "kind" => kind).increment(1);
        });
    }

    /// A write that is tried again.
    pub fn store_retry(&self) {
        self.inner.known.store_retries.increment(1);
    }

    /// Whether the store takes no writes and the worker waits for it.
    pub fn store_paused(&self, paused: bool) {
        let value = if paused { 1.0 } else { 0.0 };
        self.inner.known.store_paused.set(value);
    }

    /// A commit of offsets that the broker has confirmed, or the failure of one.
    pub fn commit(&self, succeeded: bool, took: Duration) {
        let known = &self.inner.known;
        if succeeded {
            known.commits.increment(1);
            self.stage(Stage::Commit, took);
        } else {
            known.commit_failures.increment(1);
        }
    }

    /// All of it in Prometheus' text format, the process's memory included.
    pub fn render(&self) -> String {
        self.inner.handle.run_upkeep();
        let mut text = self.inner.handle.render();
        partitions::render(&self.inner.partitions.lock(), &mut text);
        if let Some(bytes) = resident_bytes() {
            let _ = write!(
                text,
                "# HELP process_resident_memory_bytes resident memory of the process\n\
                 # TYPE process_resident_memory_bytes gauge\n\
                 process_resident_memory_bytes {bytes}\n"
            );
        }
        text
    }
}

impl Known {
    fn register() -> Self {
        let documents = |outcome| counter!("tcbert_documents_total", "outcome" => outcome);
        let tokens = |kind| counter!("tcbert_tokens_total", "kind" => kind);
        Self {
            written: documents("written"),
            deleted: documents("deleted"),
            superseded: documents("superseded"),
            dead_lettered: documents("dead_lettered"),
            abandoned: documents("abandoned"),
            truncated: counter!("tcbert_truncated_documents_total"),
            rows: histogram!("tcbert_batch_rows"),
            padding_efficiency: histogram!("tcbert_padding_efficiency"),
            real_tokens: tokens("real"),
            padding_tokens: tokens("padding"),
            unknown_tokens: counter!("tcbert_unknown_tokens_total"),
            stages: Stage::ALL
                .map(|stage| histogram!("tcbert_stage_seconds", "stage" => stage.name())),
            in_flight: gauge!("tcbert_in_flight_documents"),
            store_retries: counter!("tcbert_store_retries_total"),
            store_paused: gauge!("tcbert_store_paused"),
            commits: counter!("tcbert_commits_total"),
            commit_failures: counter!("tcbert_commit_failures_total"),
            cache_hits: counter!("tcbert_cache_hits_total"),
            future_times: counter!("tcbert_future_times_total"),
        }
    }
}

fn describe() {
    describe_counter!("tcbert_documents_total", "documents that came to their end");
    describe_counter!(
        "tcbert_truncated_documents_total",
        "documents whose text did not fit into the model"
    );
    describe_histogram!("tcbert_batch_rows", "documents of a batch");
    describe_histogram!(
        "tcbert_padding_efficiency",
        "share of a batch's tokens that are not padding"
    );
    describe_counter!("tcbert_tokens_total", "tokens given to the model");
    describe_counter!(
        "tcbert_unknown_tokens_total",
        "tokens of texts that the vocabulary does not know"
    );
    describe_histogram!("tcbert_stage_seconds", "time of each part of the work");
    describe_gauge!(
        "tcbert_in_flight_documents",
        "documents taken and not yet at their end"
    );
    describe_gauge!(
        "tcbert_well",
        "1 while a part of the worker (broker, assignment, store, dead_letters) is well"
    );
    describe_counter!("tcbert_store_retries_total", "writes tried again");
    describe_gauge!(
        "tcbert_store_paused",
        "1 while the store takes no writes and the worker waits"
    );
    describe_counter!(
        "tcbert_dead_letters_total",
        "records sent to the dead-letter topic"
    );
    describe_counter!("tcbert_rebalances_total", "changes of the assignment");
    describe_counter!("tcbert_commits_total", "commits of offsets");
    describe_counter!(
        "tcbert_commit_failures_total",
        "commits of offsets that failed"
    );
    describe_counter!(
        "tcbert_cache_hits_total",
        "documents answered from the cache of repeated texts"
    );
    describe_counter!(
        "tcbert_future_times_total",
        "records whose time lies in the future and counts as none"
    );
    describe_gauge!("tcbert_build_info", "1, with the version as a label");
}

/// Resident memory of this process, where the system says.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of one batch are far below 2^53"
)]
fn approximate(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_rendered() {
        let metrics = Metrics::new().unwrap();
        metrics.documents(Outcome::Written, 3);
        metrics.documents(Outcome::DeadLettered, 1);
        metrics.documents(Outcome::Superseded, 2);
        metrics.future_times(1);
        metrics.batch(3, 90, 100);
        metrics.texts(1, 7);
        metrics.stage(Stage::Infer, Duration::from_millis(3));
        let lag = |partition, records| PartitionLag {
            topic: "news".to_owned(),
            partition,
            records,
            stalled: partition == 3,
        };
        metrics.partitions(vec![lag(1, Some(0))]);
        metrics.partitions(vec![lag(2, Some(41)), lag(3, None)]);
        metrics.dead_letter("malformed");
        metrics.in_flight(5);
        let text = metrics.render();
        for line in [
            "tcbert_documents_total{outcome=\"written\"} 3",
            "tcbert_documents_total{outcome=\"dead_lettered\"} 1",
            "tcbert_documents_total{outcome=\"deleted\"} 0",
            "tcbert_documents_total{outcome=\"superseded\"} 2",
            "tcbert_future_times_total 1",
            "tcbert_tokens_total{kind=\"padding\"} 10",
            "tcbert_padding_efficiency_bucket{le=\"0.9\"} 1",
            "tcbert_padding_efficiency_bucket{le=\"0.85\"} 0",
            "tcbert_batch_rows_count 1",
            "tcbert_stage_seconds_bucket{stage=\"infer\",le=\"0.005\"} 1",
            "tcbert_lag_records{topic=\"news\",partition=\"2\"} 41",
            "tcbert_partition_stalled{topic=\"news\",partition=\"2\"} 0",
            "tcbert_partition_stalled{topic=\"news\",partition=\"3\"} 1",
            "tcbert_dead_letters_total{reason=\"malformed\"} 1",
            "tcbert_unknown_tokens_total 7",
            "tcbert_truncated_documents_total 1",
            "tcbert_in_flight_documents 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        for gone in [
            "partition=\"1\"",
            "tcbert_lag_records{topic=\"news\",partition=\"3\"}",
        ] {
            assert!(!text.contains(gone), "{gone}\n{text}");
        }
    }

    #[test]
    fn two_registries_do_not_mix() {
        let first = Metrics::new().unwrap();
        let second = Metrics::new().unwrap();
        first.store_retry();
        let line = "tcbert_store_retries_total 0";
        assert!(second.render().lines().any(|found| found == line));
    }

    #[test]
    fn histograms_are_counted_without_a_reader() {
        let metrics = Metrics::new().unwrap();
        for _ in 0..BATCHES_PER_UPKEEP {
            metrics.batch(1, 1, 1);
        }
        let text = metrics.inner.handle.render();
        let line = format!("tcbert_batch_rows_count {BATCHES_PER_UPKEEP}");
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}
