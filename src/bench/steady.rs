//! The rate of a run once it is under way: neither its start nor its end is counted.
//! Pure.

use std::time::Instant;

/// Where the counted part begins and ends, in shares of all documents.
const FROM: f64 = 0.1;
const TO: f64 = 0.95;

/// Moments at which documents were done, in order of time.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    moments: Vec<(Instant, usize)>,
    total: usize,
}

impl Progress {
    /// Notes `documents` that are done now.
    pub(super) fn add(&mut self, now: Instant, documents: usize) {
        self.total += documents;
        self.moments.push((now, self.total));
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Documents a second between a tenth and nineteen twentieths of them; 0 where that is too
    /// short to say.
    pub(super) fn per_second(&self) -> f64 {
        let share = |part: f64| self.total as f64 * part;
        let first = self
            .moments
            .iter()
            .find(|(_, done)| *done as f64 >= share(FROM));
        let last = self
            .moments
            .iter()
            .rev()
            .find(|(_, done)| *done as f64 <= share(TO))
            .or(self.moments.last());
        match (first, last) {
            (Some((begin, before)), Some((end, after))) if after > before && end > begin => {
                (after - before) as f64 / (*end - *begin).as_secs_f64()
            }
            _ => self.overall(),
        }
    }

    fn overall(&self) -> f64 {
        match (self.moments.first(), self.moments.last()) {
            (Some((begin, before)), Some((end, after))) if end > begin => {
                (after - before) as f64 / (*end - *begin).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

/// The middle of some numbers; 0 of none.
pub(super) fn median(numbers: &[f64]) -> f64 {
    percentile(numbers, 0.5)
}

/// The number that `share` of them do not exceed; 0 of none.
pub(super) fn percentile(numbers: &[f64], share: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let highest = sorted.len().saturating_sub(1);
    let at = (highest as f64 * share).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slow_start_and_a_slow_end_do_not_count() {
        let begin = Instant::now();
        let mut progress = Progress::default();
        for number in 0..100_u64 {
            let seconds = match number {
                0 => 0.0,
                1..=95 => 10.0 + number as f64 * 0.1,
                _ => 30.0 + number as f64,
            };
            progress.add(begin + Duration::from_secs_f64(seconds), 10);
        }
        assert_eq!(progress.total(), 1000);
        assert!(
            (progress.per_second() - 100.0).abs() < 1.0,
            "{}",
            progress.per_second()
        );
    }

    #[test]
    fn percentiles_of_few_and_of_none() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(percentile(&[5.0, 1.0, 9.0], 0.99), 9.0);
        assert_eq!(median(&[]), 0.0);
    }
}
