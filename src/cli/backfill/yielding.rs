//! Stays out of the live worker's way: slows a backfill down while the live group is behind.

use std::sync::Arc;
use std::time::Duration;

use crate::kafka::{KafkaSettings, LagWatch};
use crate::pipeline::{Counters, Throttle};

/// How often the live group's lag is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The slowest a backfill goes: it is to end some day.
const SLOWEST_PER_SECOND: f64 = 1.0;
/// How much faster a backfill gets with each look at a group that keeps up.
const FASTER: f64 = 1.5;

/// Decides on the rate from one look at the lag to the next. Pure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Yielding {
    /// Records that the live group may be behind.
    limit: u64,
    /// The rate now; `None` for as fast as it goes.
    rate: Option<f64>,
    /// The rate that was measured before the first slowing down.
    full: f64,
}

impl Yielding {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            rate: None,
            full: SLOWEST_PER_SECOND,
        }
    }

    /// The rate to keep from now on, given the lag and the documents a second that went through since
    /// the last look. Behind: half. Caught up to half of the limit: faster, in the end without a rate.
    pub(super) fn decide(&mut self, lag: u64, measured: f64) -> Option<f64> {
        if lag > self.limit {
            let from = self.rate.unwrap_or_else(|| {
                self.full = measured.max(SLOWEST_PER_SECOND);
                self.full
            });
            self.rate = Some((from / 2.0).max(SLOWEST_PER_SECOND));
        } else if lag <= self.limit / 2
            && let Some(rate) = self.rate
        {
            let faster = rate * FASTER;
            self.rate = (faster < self.full * 2.0).then_some(faster);
        }
        self.rate
    }
}

/// Watches the live group and sets the rate, never above `ceiling`. Never returns.
pub(super) async fn watch(
    live: KafkaSettings,
    limit: u64,
    ceiling: Option<f64>,
    throttle: Arc<Throttle>,
    counters: Arc<Counters>,
) {
    let mut yielding = Yielding::new(limit);
    let mut watch: Option<Arc<LagWatch>> = None;
    let mut before = counters.snapshot().accounted_for();
    let mut said = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (known, settings) = (watch.clone(), live.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let watch = match known {
                Some(watch) => watch,
                None => Arc::new(LagWatch::open(&settings)?),
            };
            let lag = watch.lag()?;
            Ok::<_, crate::source::SourceError>((watch, lag))
        });
        let done = counters.snapshot().accounted_for();
        #[expect(clippy::cast_precision_loss, reason = "records of two seconds")]
        let measured = (done - before) as f64 / LOOK_EVERY.as_secs_f64();
        before = done;
        match looked.await {
            Ok(Ok((opened, lag))) => {
                watch = Some(opened);
                said = false;
                let slowed = yielding.rate.is_some();
                let rate = yielding.decide(lag, measured);
                if rate.is_some() != slowed {
                    tracing::info!(lag, per_second = rate, "yielding to the live worker");
                }
                throttle.set_rate(match (rate, ceiling) {
                    (Some(rate), Some(ceiling)) => Some(rate.min(ceiling)),
                    (rate, ceiling) => rate.or(ceiling),
                });
            }
            Ok(Err(error)) if !said => {
                said = true;
                tracing::warn!(%error, "the live group's lag is not known; the rate stays as it is");
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slows_down_while_the_live_group_is_behind_and_comes_back() {
        let mut yielding = Yielding::new(100);
        assert_eq!(yielding.decide(100, 400.0), None);
        assert_eq!(yielding.decide(101, 400.0), Some(200.0));
        assert_eq!(yielding.decide(5_000, 200.0), Some(100.0));
        assert_eq!(
            yielding.decide(80, 100.0),
            Some(100.0),
            "neither behind nor caught up"
        );
        assert_eq!(yielding.decide(50, 100.0), Some(150.0));
        let mut looks = 0;
        while yielding.decide(0, 100.0).is_some() {
            looks += 1;
            assert!(looks < 20);
        }
    }

    proptest! {
        /// Always some rate, and full speed again within a bounded time after any history.
        #[test]
        fn never_stops_and_always_recovers(
            history in prop::collection::vec((0u64..10_000, 0.0f64..5_000.0), 0..100)
        ) {
            let mut yielding = Yielding::new(1_000);
            for (lag, measured) in history {
                if let Some(rate) = yielding.decide(lag, measured) {
                    prop_assert!(rate >= SLOWEST_PER_SECOND);
                }
            }
            let recovered = (0..30).any(|_| yielding.decide(0, 1.0).is_none());
            prop_assert!(recovered, "{:?}", yielding);
        }
    }
}
