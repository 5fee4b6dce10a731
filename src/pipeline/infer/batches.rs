//! Batches on demand: an inference thread that is free gathers documents and takes the next batch itself. No
//! thread of its own does that: on a processor every thread that wakes up costs a running pass its caches.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;

use crate::batch::{Batch, BatchItem, BatchPlanner};

/// Longest wait for more documents, so that a drain is noticed soon.
const TICK: Duration = Duration::from_millis(20);

/// Items that became ready together.
pub(in crate::pipeline) struct Arrival<T> {
    /// When: they may wait here for a busy model, and that counts as waiting for company.
    pub(in crate::pipeline) at: Instant,
    pub(in crate::pipeline) items: Vec<T>,
}

impl<T> Arrival<T> {
    /// Items that are ready now.
    pub(in crate::pipeline) fn now(items: Vec<T>) -> Self {
        Self {
            at: Instant::now(),
            items,
        }
    }
}

/// What the inference threads take their batches from.
pub(in crate::pipeline) struct Batches<T> {
    /// Held by the one that waits for documents; the others could not do better than wait behind it.
    gathering: Mutex<Gathering<T>>,
}

struct Gathering<T> {
    planner: BatchPlanner<T>,
    arrivals: Receiver<Arrival<T>>,
    /// What the window had no room for yet, with the time of its arrival.
    held: VecDeque<(T, Instant)>,
    /// Whether more documents may come.
    open: bool,
}

impl<T: BatchItem> Batches<T> {
    /// Batches of what comes through `arrivals`.
    pub(in crate::pipeline) fn new(
        planner: BatchPlanner<T>,
        arrivals: Receiver<Arrival<T>>,
    ) -> Self {
        Self {
            gathering: Mutex::new(Gathering {
                planner,
                arrivals,
                held: VecDeque::new(),
                open: true,
            }),
        }
    }

    /// Waits for the next batch; none once everything that came is given out and nothing more can come. Above
    /// zero, `draining` lets incomplete batches go at once.
    pub(in crate::pipeline) fn next(&self, draining: &AtomicUsize) -> Option<Batch<T>> {
        let mut gathering = self.gathering.lock();
        loop {
            gathering.fill();
            if !gathering.open && gathering.is_empty() {
                return None;
            }
            let is_last = !gathering.open && gathering.held.is_empty();
            let drains = is_last || draining.load(Ordering::Acquire) > 0;
            let batch = gathering.planner.next_batch(Instant::now(), drains);
            if batch.is_some() {
                return batch;
            }
            gathering.wait();
        }
    }
}

impl<T: BatchItem> Gathering<T> {
    fn is_empty(&self) -> bool {
        self.planner.is_empty() && self.held.is_empty()
    }

    /// Fills the window with what is at hand: a longer look-ahead makes batches of more equal lengths.
    fn fill(&mut self) {
        loop {
            while let Some((item, at)) = self.held.pop_front() {
                if let Err(item) = self.planner.push(item, at) {
                    self.held.push_front((item, at));
                    return;
                }
            }
            match self.arrivals.try_recv() {
                Ok(arrival) => self.hold(arrival),
                Err(_) => return,
            }
        }
    }

    fn hold(&mut self, Arrival { at, items }: Arrival<T>) {
        self.held.extend(items.into_iter().map(|item| (item, at)));
    }

    /// Waits for documents until the next batch is due.
    fn wait(&mut self) {
        let now = Instant::now();
        let wait = self.planner.deadline().map_or(TICK, |deadline| {
            deadline.saturating_duration_since(now).min(TICK)
        });
        match self.arrivals.recv_timeout(wait) {
            Ok(arrival) => self.hold(arrival),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.open = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::batch::BatchSettings;

    #[derive(Debug, PartialEq, Eq)]
    struct Item(u64);

    impl BatchItem for Item {
        fn tokens(&self) -> usize {
            10
        }

        fn key_hash(&self) -> u64 {
            self.0
        }
    }

    fn batches(linger_ms: u64) -> (crossbeam_channel::Sender<Arrival<Item>>, Batches<Item>) {
        let (sender, arrivals) = crossbeam_channel::unbounded();
        let settings = BatchSettings {
            token_budget: 40,
            window_documents: 6,
            linger_ms,
            ..BatchSettings::default()
        };
        (sender, Batches::new(BatchPlanner::new(&settings), arrivals))
    }

    fn items(range: std::ops::Range<u64>) -> Arrival<Item> {
        Arrival::now(range.map(Item).collect())
    }

    #[test]
    fn everything_is_given_out_once_by_whoever_asks() {
        let (sender, batches) = batches(5);
        let batches = Arc::new(batches);
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let batches = batches.clone();
                std::thread::spawn(move || {
                    let mut taken = Vec::new();
                    while let Some(batch) = batches.next(&AtomicUsize::new(0)) {
                        assert!(batch.padded_tokens() <= 40);
                        taken.extend(batch.items.into_iter().map(|item| item.0));
                    }
                    taken
                })
            })
            .collect();
        for from in (0..1_000).step_by(25) {
            sender.send(items(from..from + 25)).unwrap();
        }
        drop(sender);
        let mut taken: Vec<u64> = takers
            .into_iter()
            .flat_map(|taker| taker.join().unwrap())
            .collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn an_incomplete_batch_goes_after_its_linger_or_in_a_drain() {
        const LINGER_MS: u64 = 300;
        let (sender, lingering) = batches(LINGER_MS);
        let started = Instant::now();
        sender.send(items(0..2)).unwrap();
        let batch = lingering.next(&AtomicUsize::new(0)).unwrap();
        assert_eq!(batch.items.len(), 2);
        assert!(started.elapsed() >= Duration::from_millis(LINGER_MS));

        // While the model was busy it has waited long enough.
        sender.send(items(2..3)).unwrap();
        std::thread::sleep(Duration::from_millis(LINGER_MS + 10));
        let started = Instant::now();
        let late = lingering.next(&AtomicUsize::new(0)).unwrap();
        assert!(
            started.elapsed() < Duration::from_millis(LINGER_MS),
            "{late:?}"
        );

        let (sender, patient) = batches(60_000);
        sender.send(items(0..2)).unwrap();
        assert_eq!(patient.next(&AtomicUsize::new(1)).unwrap().items.len(), 2);
        sender.send(items(2..3)).unwrap();
        drop(sender);
        assert_eq!(patient.next(&AtomicUsize::new(0)).unwrap().items, [Item(2)]);
        assert_eq!(patient.next(&AtomicUsize::new(0)), None);
    }
}
