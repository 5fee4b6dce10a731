//! One partition that is assigned: where it is, and what was delivered of it. Pure: knows no client.

use crate::document::{Generation, TopicPartition};
use crate::kafka::consumer::assignment::delivered::Delivered;
use crate::kafka::log_identity::LogNote;

/// Where a partition begins or continues, its log having been checked.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct Begin {
    pub(in crate::kafka) partition: TopicPartition,
    pub(in crate::kafka) generation: Generation,
    pub(in crate::kafka) at: i64,
    /// The next record wanted; `at` may lie behind a gap.
    pub(in crate::kafka) next: Option<i64>,
    /// Where a bounded source stops.
    pub(in crate::kafka) end: Option<i64>,
    /// What the last commit says of the log.
    pub(in crate::kafka) log: LogNote,
}

/// A partition that is assigned.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct Held {
    pub(in crate::kafka) partition: TopicPartition,
    pub(in crate::kafka) generation: Generation,
    /// Whether its revocation has begun: nothing of it is delivered any more.
    pub(in crate::kafka) leaving: bool,
    /// Whether its log is being compared with what was read before: paused, nothing is taken.
    pub(in crate::kafka) checking: bool,
    /// Whether it has begun under this assignment, so that a check is one of an offset reset.
    pub(in crate::kafka) begun: bool,
    /// The next record wanted: after the newest one seen under this assignment and after what is gone.
    pub(in crate::kafka) next: Option<i64>,
    /// The offset after the newest record delivered: a bounded source skips records behind its range.
    pub(in crate::kafka) delivered_next: Option<i64>,
    /// The records taken, as far as commits have to name them.
    pub(in crate::kafka) delivered: Delivered,
    /// Where a bounded source stops: the offset after the last record wanted.
    pub(in crate::kafka) end: Option<i64>,
    /// Whether a bounded source has reached that end.
    pub(in crate::kafka) ended: bool,
    /// Whether fetching was paused for that.
    pub(in crate::kafka) rests: bool,
    /// Everything below is durable and committed, or was when the partition was assigned.
    pub(in crate::kafka) position: Option<i64>,
}

impl Held {
    /// A partition that was just assigned: its log is to be checked before anything of it is taken.
    pub(in crate::kafka) fn new(partition: TopicPartition, generation: Generation) -> Self {
        Self {
            partition,
            generation,
            leaving: false,
            checking: true,
            begun: false,
            next: None,
            delivered_next: None,
            delivered: Delivered::default(),
            end: None,
            ended: false,
            rests: false,
            position: None,
        }
    }

    /// Begins under this assignment.
    pub(in crate::kafka) fn begin(&mut self, begin: &Begin) {
        self.begun = true;
        self.delivered = Delivered::resumed(begin.log);
        self.next = begin.next;
        self.delivered_next = begin.next;
        self.position = begin.next;
        self.end = begin.end;
        self.reach();
    }

    /// Continues at this offset; what is missing before it is gone.
    pub(in crate::kafka) fn continue_at(&mut self, at: i64) {
        if self.next.is_none() {
            // Nothing was delivered, and nothing was promised.
            self.position = self.position.max(Some(at));
        } else {
            // What was delivered before is not durable because something behind it is gone.
            self.next = self.next.max(Some(at));
            self.reach();
        }
    }

    /// Notes that a bounded source has ended where the next record wanted lies behind what it reads.
    fn reach(&mut self) {
        self.ended |= self
            .next
            .zip(self.end)
            .is_some_and(|(next, end)| next >= end);
    }

    /// Up to where it can be committed beyond its position, since nothing between will be delivered.
    pub(in crate::kafka) fn passed(&self) -> Option<i64> {
        let done = if self.ended { self.end } else { self.next };
        let everything_is_durable = self.position >= self.delivered_next;
        done.filter(|done| everything_is_durable && !self.leaving && self.position < Some(*done))
    }

    /// Whether it is read, and everything that was delivered is committed.
    pub(in crate::kafka) fn is_settled(&self) -> bool {
        let reads = self.begun && !self.checking && !self.leaving && !self.ended;
        reads && self.position.is_some() && self.next.is_none_or(|next| Some(next) == self.position)
    }
}
