//! What the store has accepted: the proof that a rejection is about a record and not about the store. A
//! full or misconfigured server rejects sound records with the same statuses as bad ones, and texts
//! change from version to version.
//!
//! Knows no store: the write path sends the probes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::content::Write;

/// Records that may wait without a proof; more of them stop the worker.
const MOST_HELD: usize = 100;
/// How long they wait until then: a cluster that has just started rejects for some seconds.
const HELD_FOR: Duration = Duration::from_secs(10);
/// How long fewer of them may wait where nobody asks whether the worker is ready.
const UNSEEN_FOR: Duration = Duration::from_secs(60);
/// Records in a row that are given up while the store accepts nothing new: it may take known documents again
/// and reject new ones, as a limit on points does. More than a job may have at its end, where nothing follows.
const MOST_GIVEN_UP: usize = 50;
/// Bytes of a record that may serve as a probe: it is kept outside the budget.
const LARGEST_PROBE: usize = 256 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::pipeline) struct Acceptance(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Writes accepted since the start.
    accepted: u64,
    probe: Option<Probe>,
    /// Records that wait because no proof was found.
    held: usize,
    /// The batches that they came in, with how many parts of each wait.
    held_batches: HashMap<u64, usize>,
    /// When the first of them was rejected, nothing new having been accepted since.
    held_since: Option<Instant>,
    /// Records given up since something new was accepted.
    given_up: usize,
}

/// The last accepted write: to send it again is harmless.
#[derive(Debug, Clone)]
pub(in crate::pipeline) struct Probe {
    pub(in crate::pipeline) write: Arc<Write>,
    pub(in crate::pipeline) accepted_at: Instant,
}

impl Acceptance {
    /// Notes an accepted batch and keeps one of its documents as a probe.
    pub(in crate::pipeline) fn accepted(&self, batch: Vec<Write>) {
        let write = batch
            .into_iter()
            .find(|write| write.body.is_document() && write.record.size_bytes() <= LARGEST_PROBE)
            .map(Arc::new);
        let mut state = self.0.lock();
        state.accepted += 1;
        state.given_up = 0;
        state.held_since = (state.held > 0).then(Instant::now);
        if let Some(write) = write {
            state.probe = Some(Probe {
                write,
                accepted_at: Instant::now(),
            });
        }
    }

    /// Notes that a probe was accepted.
    pub(in crate::pipeline) fn probed(&self) {
        self.0.lock().accepted += 1;
    }

    /// Whether one more record may be given up.
    pub(in crate::pipeline) fn may_give_up(&self) -> bool {
        let mut state = self.0.lock();
        let may = state.given_up < MOST_GIVEN_UP;
        state.given_up += usize::from(may);
        may
    }

    /// Writes accepted so far; more of them later prove that the store accepts writes.
    pub(in crate::pipeline) fn count(&self) -> u64 {
        self.0.lock().accepted
    }

    /// The last accepted document; `None` before the first.
    pub(in crate::pipeline) fn probe(&self) -> Option<Probe> {
        self.0.lock().probe.clone()
    }

    /// Lets the probe go: it may no longer be sent.
    pub(in crate::pipeline) fn forget_probe(&self) {
        self.0.lock().probe = None;
    }

    /// Counts records of a batch as held until the guard is dropped; none where it only takes no place of
    /// those in flight.
    pub(in crate::pipeline) fn hold(&self, batch: u64, records: usize) -> Held<'_> {
        let mut state = self.0.lock();
        state.held += records;
        *state.held_batches.entry(batch).or_default() += 1;
        if records > 0 {
            state.held_since.get_or_insert_with(Instant::now);
        }
        Held {
            acceptance: self,
            batch,
            records,
        }
    }

    /// Batches of which a part is held: others go out meanwhile, one of which may be the proof.
    pub(in crate::pipeline) fn held_batches(&self) -> usize {
        self.0.lock().held_batches.len()
    }

    /// How many records are held where they are too many for too long, or have been held unseen.
    pub(in crate::pipeline) fn too_many_held(&self, now: Instant, is_seen: bool) -> Option<usize> {
        let state = self.0.lock();
        let lasted = now.saturating_duration_since(state.held_since?);
        let too_many = state.held >= MOST_HELD && lasted >= HELD_FOR;
        let unseen = state.held > 0 && !is_seen && lasted >= UNSEEN_FOR;
        (too_many || unseen).then_some(state.held)
    }
}

/// Records that wait for a proof.
#[derive(Debug)]
pub(in crate::pipeline) struct Held<'a> {
    acceptance: &'a Acceptance,
    batch: u64,
    records: usize,
}

impl Held<'_> {
    /// Records that it counts.
    pub(in crate::pipeline) fn records(&self) -> usize {
        self.records
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.acceptance.0.lock();
        state.held -= self.records;
        if let Some(parts) = state.held_batches.get_mut(&self.batch) {
            *parts -= 1;
            if *parts == 0 {
                state.held_batches.remove(&self.batch);
            }
        }
        if state.held == 0 {
            state.held_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_records_without_a_proof_are_too_many_after_a_while() {
        let acceptance = Acceptance::default();
        let later = || Instant::now() + HELD_FOR;
        let most = acceptance.hold(1, MOST_HELD - 1);
        assert_eq!(acceptance.too_many_held(later(), true), None);
        let unseen = Instant::now() + UNSEEN_FOR;
        assert_eq!(acceptance.too_many_held(unseen, false), Some(MOST_HELD - 1));
        let one = acceptance.hold(1, 1);
        assert_eq!(acceptance.held_batches(), 1);
        assert_eq!(acceptance.too_many_held(Instant::now(), true), None);
        assert_eq!(acceptance.too_many_held(later(), true), Some(MOST_HELD));
        drop(one);
        assert_eq!(acceptance.too_many_held(later(), true), None);
        drop(most);
        assert_eq!(acceptance.held_batches(), 0);
        let _again = acceptance.hold(2, MOST_HELD);
        assert_eq!(acceptance.too_many_held(Instant::now(), true), None);
    }

    #[test]
    fn what_is_accepted_meanwhile_gives_more_time() {
        let acceptance = Acceptance::default();
        let _held = acceptance.hold(2, MOST_HELD);
        let before = Instant::now() + HELD_FOR;
        std::thread::sleep(Duration::from_millis(5));
        acceptance.accepted(Vec::new());
        assert_eq!(acceptance.count(), 1);
        assert_eq!(acceptance.too_many_held(before, true), None);
        assert!(
            acceptance
                .too_many_held(Instant::now() + HELD_FOR, true)
                .is_some()
        );
    }

    #[test]
    fn few_records_in_a_row_are_given_up_while_nothing_new_is_accepted() {
        let acceptance = Acceptance::default();
        let given_up = |times: usize| (0..times).filter(|_| acceptance.may_give_up()).count();
        assert_eq!(given_up(100), MOST_GIVEN_UP);
        acceptance.probed();
        assert_eq!(given_up(1), 0, "a probe is nothing new");
        acceptance.accepted(Vec::new());
        assert_eq!(given_up(1), 1);
    }
}
