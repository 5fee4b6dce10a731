//! Pauses between tries, which double. Knows nothing of what is tried.

use std::time::Duration;

/// The pauses of one operation that is retried.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Pauses from `shortest` on, at most `longest`.
    pub(crate) fn new(shortest: Duration, longest: Duration) -> Self {
        Self {
            next: shortest.min(longest),
            longest,
        }
    }

    /// The next pause: between half and the whole of a bound that doubles each time. Workers that lost the same
    /// server do not come back in step.
    pub(crate) fn pause(&mut self) -> Duration {
        let bound = self.next;
        self.next = (bound * 2).min(self.longest);
        bound.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(300));
        for bound in [50, 100, 200, 300, 300] {
            let pause = backoff.pause();
            assert!(pause >= Duration::from_millis(bound / 2), "{pause:?}");
            assert!(pause <= Duration::from_millis(bound), "{pause:?}");
        }
        let mut short = Backoff::new(Duration::from_secs(9), Duration::from_secs(1));
        assert!(short.pause() <= Duration::from_secs(1));
    }
}
