//! When a write goes out: a full one at once, an incomplete one some time after the write before.
//! Pure: the time is passed in; must not know what is written.

use std::time::{Duration, Instant};

/// The pace of writes. A write costs the store as much as its points do, however few they are: under load an
/// incomplete one waits for company, after a pause it goes out at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    full: usize,
    linger: Duration,
    last: Option<Instant>,
}

impl Pace {
    /// For writes of at most `full` points of which incomplete ones are at least `linger` apart.
    pub(super) fn new(full: usize, linger: Duration) -> Self {
        Self {
            full,
            linger,
            last: None,
        }
    }

    /// How long `points` points have to wait; zero where they may go out now.
    pub(super) fn wait(&self, points: usize, now: Instant) -> Duration {
        match self.last {
            Some(last) if points < self.full => self
                .linger
                .saturating_sub(now.saturating_duration_since(last)),
            _ => Duration::ZERO,
        }
    }

    /// Notes that a write goes out.
    pub(super) fn sent(&mut self, now: Instant) {
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: usize = 128;
    const LINGER: Duration = Duration::from_millis(200);

    #[test]
    fn the_first_write_and_one_after_a_pause_go_out_at_once() {
        let mut pace = Pace::new(FULL, LINGER);
        let start = Instant::now();
        assert_eq!(pace.wait(1, start), Duration::ZERO);
        pace.sent(start);
        assert_eq!(pace.wait(1, start), LINGER);
        assert_eq!(pace.wait(FULL, start), Duration::ZERO, "a full one");
        assert_eq!(pace.wait(1, start + LINGER), Duration::ZERO);
    }

    proptest! {
        /// Whatever arrives when: nothing waits longer than the linger, and incomplete writes are that far apart.
        #[test]
        fn incomplete_writes_keep_their_distance(
            arrivals in prop::collection::vec((0_u64..400, 1_usize..100), 1..100),
        ) {
            let mut pace = Pace::new(FULL, LINGER);
            let start = Instant::now();
            let (mut now, mut pending, mut oldest) = (start, 0, None);
            let mut last: Option<Instant> = None;
            for (pause_ms, points) in arrivals {
                let next = now + Duration::from_millis(pause_ms);
                while pending > 0 && now + pace.wait(pending, now) <= next {
                    now += pace.wait(pending, now);
                    prop_assert!(pending >= FULL || last.is_none_or(|at| now - at >= LINGER));
                    prop_assert!(oldest.is_none_or(|since| now - since <= LINGER));
                    pace.sent(now);
                    last = Some(now);
                    pending = pending.saturating_sub(FULL);
                    oldest = (pending > 0).then_some(now);
                }
                now = next;
                pending += points;
                oldest.get_or_insert(now);
            }
        }
    }
}
