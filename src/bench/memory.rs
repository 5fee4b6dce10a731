//! Whether memory stays flat over a long run of varying shapes: the pipeline with the real model, the
//! broker in another process, points counted and dropped.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::corpus::Mix;
use super::error::BenchError;
use super::run::{Target, probe};
use super::steady::median;
use super::{Bench, BenchOptions};
use crate::settings::Settings;

/// Most partitions of the mock broker's topic that are needed to hold what is produced.
const PARTITIONS: i32 = 96;
/// How often the memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The share of the run in which memory may still grow, and the share after it that is compared.
const WARM_UP: f64 = 0.2;
const COMPARED: f64 = 0.1;

/// What a long run did to the process's memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryReport {
    /// Documents of the run.
    pub documents: usize,
    /// Length of the run.
    pub seconds: f64,
    /// Anonymous resident memory after the warm-up.
    pub anonymous_mib_after_warm_up: f64,
    /// Anonymous resident memory at the end.
    pub anonymous_mib_at_the_end: f64,
    /// By what share it grew in between; below zero where it shrank.
    pub growth: f64,
}

/// Runs `documents` mixed documents through the pipeline and watches the memory.
///
/// # Errors
/// When a stage cannot be built or fails.
pub async fn measure_memory(
    settings: &Settings,
    options: &BenchOptions,
    documents: usize,
) -> Result<MemoryReport, BenchError> {
    let mut bench = Bench::new(settings, options)?;
    let mut fill = bench.fill_of(Mix::Mixed, documents, None);
    fill.partitions = PARTITIONS;
    bench.broker.fill(&fill)?;
    let started = Instant::now();
    let mut looks = Vec::new();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    let run = bench.run_into(&fill, Target::Counting);
    tokio::pin!(run);
    loop {
        tokio::select! {
            outcome = &mut run => {
                outcome?;
                return Ok(report(documents, started.elapsed(), &looks));
            }
            _ = tick.tick() => looks.push(probe::anonymous_memory_mib()),
        }
    }
}

fn report(documents: usize, took: Duration, looks: &[f64]) -> MemoryReport {
    let at = |share: f64| (looks.len() as f64 * share) as usize;
    let part = |from: f64, to: f64| median(looks.get(at(from)..at(to)).unwrap_or_default());
    let before = part(WARM_UP, WARM_UP + COMPARED);
    let after = part(1.0 - COMPARED, 1.0);
    MemoryReport {
        documents,
        seconds: took.as_secs_f64(),
        anonymous_mib_after_warm_up: before,
        anonymous_mib_at_the_end: after,
        growth: after / before.max(f64::MIN_POSITIVE) - 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_after_the_warm_up_counts_and_growth_before_does_not() {
        let flat: Vec<f64> = (0..100)
            .map(|at| if at < 15 { at as f64 } else { 100.0 })
            .collect();
        assert_eq!(report(1, Duration::from_secs(1), &flat).growth, 0.0);
        let leaking: Vec<f64> = (0..100).map(|at| 100.0 + f64::from(at)).collect();
        assert!(report(1, Duration::from_secs(1), &leaking).growth > 0.5);
    }
}
