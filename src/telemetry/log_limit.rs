//! The same trouble is logged now and then while it lasts, not each time it is met.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// When a kind of trouble was last logged.
#[derive(Debug)]
pub struct LogLimit {
    every: Duration,
    last: Mutex<Option<Instant>>,
}

impl LogLimit {
    /// Lets it be logged once in `every`.
    pub const fn new(every: Duration) -> Self {
        Self {
            every,
            last: Mutex::new(None),
        }
    }

    /// Whether it is to be logged at `now`; if so, it counts as logged.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut last = self.last.lock();
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= self.every);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_and_then_one_an_interval() {
        let limit = LogLimit::new(Duration::from_secs(30));
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let logged: Vec<_> = [0, 1, 29, 30, 31, 59, 61, 1000]
            .into_iter()
            .filter(|seconds| limit.is_due(at(*seconds)))
            .collect();
        assert_eq!(logged, [0, 30, 61, 1000]);
    }
}
