//! What is in flight: the watermarks behind one lock, and the one budget that bounds all buffers.
//!
//! A record enters when it is admitted and leaves when it is acknowledged: durably written, durably
//! dead-lettered, or abandoned with its partition. Between the two it occupies the budget, so that
//! the memory of every channel behind the intake is bounded by two numbers.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::document::{Generation, Receipt, TopicPartition};
use crate::source::{CommitOffset, SourceRecord};
use crate::watermark::Watermarks;

/// The two numbers that bound what is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Records delivered and not acknowledged.
    pub(super) records: usize,
    /// Bytes of their keys, values and headers.
    pub(super) bytes: usize,
    /// Records delivered above the watermark, acknowledged ones included: one record that takes
    /// long must not let the memory of what was finished behind it grow.
    pub(super) window: usize,
}

#[derive(Debug, Default)]
struct State {
    watermarks: Watermarks,
    records: usize,
    bytes: usize,
    closed: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    budget: Budget,
    state: Mutex<State>,
    changed: Condvar,
}

/// What one record occupies until it is acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    receipt: Receipt,
    bytes: usize,
    admitted: Instant,
}

impl Ticket {
    /// The ticket of a record that was admitted then; taken before the record moves on.
    pub(super) fn of(record: &SourceRecord, admitted: Instant) -> Self {
        Self {
            receipt: record.receipt(),
            bytes: record.size_bytes(),
            admitted,
        }
    }

    /// When the record was put in flight.
    pub(super) fn admitted(&self) -> Instant {
        self.admitted
    }
}

impl Ledger {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            budget,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    /// How many of `records`, from the first on, the budget has room for; one that is larger than the whole
    /// budget passes alone.
    fn room(&self, state: &State, records: &[SourceRecord]) -> usize {
        let count = self.budget.records.saturating_sub(state.records);
        let window = self.budget.window.saturating_sub(state.watermarks.window());
        let mut bytes = state.bytes;
        let fitting = records.iter().take(count.min(window)).take_while(|record| {
            bytes = bytes.saturating_add(record.size_bytes());
            bytes <= self.budget.bytes
        });
        let fitting = fitting.count();
        if state.records == 0 {
            fitting.max(1)
        } else {
            fitting
        }
        .min(records.len())
    }

    /// Waits until there is room for the first of `records`, for at most `wait`; says how many there is room
    /// for.
    pub(super) fn wait_for_room(&self, records: &[SourceRecord], wait: Duration) -> usize {
        let deadline = Instant::now() + wait;
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return 0;
            }
            let room = self.room(&state, records);
            if room > 0 || self.changed.wait_until(&mut state, deadline).timed_out() {
                return room;
            }
        }
    }

    /// Puts records in flight, and gives back those that were taken: what belongs to an assignment
    /// that has ended is dropped, its next owner gets it.
    pub(super) fn admit(&self, mut records: Vec<SourceRecord>) -> Vec<SourceRecord> {
        let mut state = self.state.lock();
        records.retain(|record| state.watermarks.deliver(&record.receipt()));
        state.bytes += records.iter().map(SourceRecord::size_bytes).sum::<usize>();
        state.records += records.len();
        records
    }

    /// Takes records out of flight; stale ones only free their budget.
    pub(super) fn acknowledge<'a>(&self, tickets: impl IntoIterator<Item = &'a Ticket>) {
        let mut state = self.state.lock();
        for ticket in tickets {
            state.watermarks.acknowledge([&ticket.receipt]);
            state.records = state.records.saturating_sub(1);
            state.bytes = state.bytes.saturating_sub(ticket.bytes);
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn assign(&self, partitions: &[TopicPartition], generation: Generation) {
        self.state.lock().watermarks.assign(partitions, generation);
    }

    /// Waits until nothing of `partitions` is in flight, at most `wait`; then gives their last
    /// offsets and how many records are given up, and forgets them.
    pub(super) fn revoke(
        &self,
        partitions: &[TopicPartition],
        wait: Duration,
    ) -> (Vec<CommitOffset>, usize) {
        let deadline = Instant::now() + wait;
        let mut state = self.state.lock();
        while !state.closed && state.watermarks.in_flight_of(partitions) > 0 {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        let given_up = state.watermarks.in_flight_of(partitions);
        (state.watermarks.revoke(partitions), given_up)
    }

    /// Forgets partitions; says how many records are given up with them.
    pub(super) fn lose(&self, partitions: &[TopicPartition]) -> usize {
        let mut state = self.state.lock();
        let given_up = state.watermarks.in_flight_of(partitions);
        state.watermarks.lose(partitions);
        drop(state);
        self.changed.notify_all();
        given_up
    }

    pub(super) fn committable(&self) -> Vec<CommitOffset> {
        self.state.lock().watermarks.committable()
    }

    pub(super) fn mark_committed(&self, offsets: &[CommitOffset]) {
        self.state.lock().watermarks.mark_committed(offsets);
    }

    /// Records in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.state.lock().records
    }

    /// Waits until nothing is in flight, at most `wait`; true when that is so.
    pub(super) fn wait_until_empty(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut state = self.state.lock();
        while !state.closed && state.records > 0 {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.records == 0
    }

    /// Wakes everybody who waits: nothing more will be acknowledged.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}
