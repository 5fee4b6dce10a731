//! How fast records may enter: a token bucket. Pure but for its lock: the time is passed in.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Share of a second's records that may enter at once.
const BURST_SECONDS: f64 = 0.1;
/// Longest wait that is told, however slow the rate.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A rate that may change while records flow; shared with whoever decides on it.
#[derive(Debug)]
pub struct Throttle(Mutex<TokenBucket>);

impl Throttle {
    /// At most `per_second` records a second, `None` for as many as come.
    pub fn new(per_second: Option<f64>) -> Self {
        Self(Mutex::new(TokenBucket::new(per_second, Instant::now())))
    }

    /// Changes the rate; what was saved up under the old one is kept as far as the new one allows.
    pub fn set_rate(&self, per_second: Option<f64>) {
        self.0.lock().set_rate(per_second, Instant::now());
    }

    /// How many of `wanted` records may enter now.
    pub(super) fn take(&self, wanted: usize) -> usize {
        self.0.lock().take(wanted, Instant::now())
    }

    /// How long until the next may.
    pub(super) fn wait(&self) -> Duration {
        self.0.lock().wait()
    }
}

/// Tokens that come in at a rate and are taken one a record.
#[derive(Debug)]
struct TokenBucket {
    per_second: Option<f64>,
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    fn new(per_second: Option<f64>, now: Instant) -> Self {
        let per_second = per_second.map(|rate| rate.max(0.0));
        Self {
            per_second,
            tokens: per_second.map_or(0.0, |rate| burst(rate).min(1.0)),
            filled: now,
        }
    }

    fn set_rate(&mut self, per_second: Option<f64>, now: Instant) {
        self.fill(now);
        self.per_second = per_second.map(|rate| rate.max(0.0));
        self.tokens = self.tokens.min(self.per_second.map_or(0.0, burst));
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        if let Some(rate) = self.per_second {
            self.tokens = (self.tokens + rate * elapsed.as_secs_f64()).min(burst(rate));
        }
    }

    fn take(&mut self, wanted: usize, now: Instant) -> usize {
        self.fill(now);
        if self.per_second.is_none() {
            return wanted;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "never negative, and at most a burst"
        )]
        let whole = self.tokens.floor() as usize;
        let taken = whole.min(wanted);
        #[expect(clippy::cast_precision_loss, reason = "at most a burst")]
        let spent = taken as f64;
        self.tokens -= spent;
        taken
    }

    fn wait(&self) -> Duration {
        match self.per_second {
            None => Duration::ZERO,
            Some(rate) => Duration::try_from_secs_f64((1.0 - self.tokens).max(0.0) / rate)
                .map_or(LONGEST_WAIT, |wait| wait.min(LONGEST_WAIT)),
        }
    }
}

/// Tokens that are saved up at most: one may enter, and what comes in while nobody asks for it is
/// kept, or a slow rate would never be reached.
fn burst(per_second: f64) -> f64 {
    if per_second > 0.0 {
        (per_second * BURST_SECONDS).max(2.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_a_rate_everything_enters() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(None, now);
        assert_eq!(bucket.take(1_000_000, now), 1_000_000);
        assert_eq!(bucket.wait(), Duration::ZERO);
    }

    #[test]
    fn at_no_rate_nothing_enters_until_it_is_raised() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(Some(0.0), now);
        assert_eq!(bucket.take(5, now + Duration::from_secs(1000)), 0);
        assert_eq!(bucket.wait(), LONGEST_WAIT);
        bucket.set_rate(None, now);
        assert_eq!(bucket.take(5, now), 5);
    }

    #[test]
    fn a_slow_rate_lets_one_in_at_a_time() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(Some(2.0), start);
        assert_eq!(bucket.take(5, start), 1);
        assert_eq!(bucket.wait(), Duration::from_millis(500));
        assert_eq!(bucket.take(5, start + Duration::from_millis(400)), 0);
        assert_eq!(bucket.take(5, start + Duration::from_millis(600)), 1);
    }

    proptest! {
        /// Never more than the rate and one burst over any time, and never less than the rate for
        /// whoever asks often enough.
        #[test]
        fn the_rate_is_kept(
            rate in 0.5f64..5_000.0,
            steps in prop::collection::vec((0u64..500, 0usize..2_000), 1..200),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut bucket = TokenBucket::new(Some(rate), start);
            let mut taken = 0;
            for (pause_ms, wanted) in steps {
                now += Duration::from_millis(pause_ms);
                let granted = bucket.take(wanted, now);
                prop_assert!(granted <= wanted);
                taken += granted;
                let allowed = rate * (now - start).as_secs_f64() + burst(rate);
                prop_assert!(taken as f64 <= allowed + 1e-6, "{} of {}", taken, allowed);
            }
            let step = Duration::from_secs_f64(0.5 / rate);
            let (from, mut greedy) = (now, 0);
            for _ in 0..1_000 {
                now += step;
                greedy += bucket.take(usize::MAX, now);
            }
            let due = rate * (now - from).as_secs_f64();
            prop_assert!(greedy as f64 >= due - 1.0 - 1e-6, "{} of {}", greedy, due);
        }

        /// Whoever waits as long as told gets something.
        #[test]
        fn the_wait_that_is_told_is_enough(rate in 0.5f64..5_000.0, wanted in 1usize..100) {
            let mut now = Instant::now();
            let mut bucket = TokenBucket::new(Some(rate), now);
            for _ in 0..50 {
                if bucket.take(wanted, now) == 0 {
                    now += bucket.wait() + Duration::from_micros(1);
                    prop_assert!(bucket.take(wanted, now) > 0);
                }
            }
        }
    }
}
