//! One partition that is assigned: where it is, and what was delivered of it. Pure: knows no client.

use crate::document::{Generation, TopicPartition};
use crate::kafka::consumer::assignment::delivered::Delivered;

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
    /// The offset after the newest record seen under this assignment, or where it began.
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
    /// Where a bounded source's group is.
    pub(in crate::kafka) committed: Option<i64>,
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
            committed: None,
            position: None,
        }
    }

    /// Whether it is read, and everything that was delivered is committed.
    pub(in crate::kafka) fn is_settled(&self) -> bool {
        let reads = self.begun && !self.checking && !self.leaving && !self.ended;
        reads && self.position.is_some() && self.next.is_none_or(|next| Some(next) == self.position)
    }
}
