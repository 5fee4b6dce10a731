//! When a write goes out: a full one at once, an incomplete one some time after the write before.
//! Pure: the time is passed in; must not know what is written.

use std::time::{Duration, Instant};

/// Longest wait of an incomplete write whose documents have been under way for long, in lingers.
const LONGEST_IN_LINGERS: u32 = 5;

/// The pace of writes. A write costs the store as much as its points do, however few they are: under load an
/// incomplete one waits for company, after a pause it goes out at once. Where documents queue for the model it
/// waits longer, half as long as its first document has been under way: what is late already is hardly later by that,
/// and the processor has more for the model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    full: usize,
    linger: Duration,
    last: Option<Instant>,
}

impl Pace {
    /// For writes of at most `full` points of which incomplete ones are at least `linger` apart, at most five times
    /// as long.
    pub(super) fn new(full: usize, linger: Duration) -> Self {
        Self {
            full,
            linger,
            last: None,
        }
    }

    /// How long `points` points have to wait, the first of which has been under way since `admitted`; zero where
    /// they may go out now.
    pub(super) fn wait(&self, points: usize, admitted: Instant, now: Instant) -> Duration {
        match self.last {
            Some(last) if points < self.full => {
                let under_way = last.saturating_duration_since(admitted);
                let distance = (under_way / 2).clamp(self.linger, self.linger * LONGEST_IN_LINGERS);
                distance.saturating_sub(now.saturating_duration_since(last))
            }
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
        assert_eq!(pace.wait(1, start, start), Duration::ZERO);
        pace.sent(start);
        assert_eq!(pace.wait(1, start, start), LINGER);
        assert_eq!(pace.wait(FULL, start, start), Duration::ZERO, "a full one");
        assert_eq!(pace.wait(1, start, start + LINGER), Duration::ZERO);
    }

    #[test]
    fn what_has_been_under_way_for_long_waits_half_as_long_again_within_bounds() {
        let mut pace = Pace::new(FULL, LINGER);
        let start = Instant::now();
        let wait_after = |pace: &Pace, under_way| pace.wait(1, start, start + under_way);
        for (under_way_ms, wait_ms) in [(100, 200), (400, 200), (1_000, 500), (60_000, 1_000)] {
            let under_way = Duration::from_millis(under_way_ms);
            pace.sent(start + under_way);
            let wait = wait_after(&pace, under_way);
            assert_eq!(wait, Duration::from_millis(wait_ms), "{under_way_ms}");
            let full = pace.wait(FULL, start, start + under_way);
            assert_eq!(full, Duration::ZERO, "a full one");
        }
        let none = Pace::new(FULL, Duration::ZERO);
        assert_eq!(wait_after(&none, LINGER), Duration::ZERO, "no linger");
    }

    proptest! {
        /// Whatever arrives when, and however long it was under way: incomplete writes are at least the linger apart,
        /// and none is held up longer than that or half the time its first document has been under way.
        #[test]
        fn incomplete_writes_keep_their_distance(
            arrivals in prop::collection::vec((0_u64..400, 1_usize..100, 0_u64..3_000), 1..100),
        ) {
            let mut pace = Pace::new(FULL, LINGER);
            let start = Instant::now() + Duration::from_secs(3);
            let (mut now, mut pending) = (start, Vec::new());
            let mut last: Option<Instant> = None;
            for (pause_ms, points, under_way_ms) in arrivals {
                let next = now + Duration::from_millis(pause_ms);
                while let Some((admitted, arrived)) = pending.first().copied() {
                    let due = now + pace.wait(pending.len(), admitted, now);
                    if due > next {
                        break;
                    }
                    now = due;
                    prop_assert!(pending.len() >= FULL || last.is_none_or(|at| now - at >= LINGER));
                    let held = now - last.map_or(arrived, |at| at.max(arrived));
                    prop_assert!(held <= LINGER.max((now - admitted) / 2).min(LINGER * LONGEST_IN_LINGERS));
                    pace.sent(now);
                    last = Some(now);
                    pending.drain(..pending.len().min(FULL));
                }
                now = next;
                pending.extend(std::iter::repeat_n((now - Duration::from_millis(under_way_ms), now), points));
            }
        }
    }
}
