//! Which records of one partition were delivered and are not committed yet, as far as a commit has
//! to say which log it belongs to. Pure: knows no client.

use std::collections::VecDeque;

use crate::kafka::log_identity::{LogNote, RecordIdentity};

/// Most identities kept of one partition. Beyond it every second one is dropped, and a commit may
/// name an earlier record than the last.
const MAX_KEPT: usize = 16_384;

/// The records of one partition under one assignment.
#[derive(Debug, Clone, Default)]
pub(in crate::kafka) struct Delivered {
    /// Not committed yet, offsets ascending.
    recent: VecDeque<RecordIdentity>,
    /// The last one below the committed offset.
    last: Option<RecordIdentity>,
    /// The last one that was read again from the log since it was committed.
    verified: Option<RecordIdentity>,
}

impl Delivered {
    /// Begins with what the last commit says, all of which was compared with the log just now.
    pub(in crate::kafka) fn resumed(note: LogNote) -> Self {
        Self {
            recent: VecDeque::new(),
            last: note.last,
            verified: note.last.or(note.verified),
        }
    }

    /// Notes a delivered record.
    pub(in crate::kafka) fn push(&mut self, record: RecordIdentity) {
        if self.recent.len() >= MAX_KEPT {
            let mut odd = false;
            self.recent.retain(|_| {
                odd = !odd;
                odd
            });
        }
        self.recent.push_back(record);
    }

    /// What to compare with the log where the partition goes on after its newest record.
    pub(in crate::kafka) fn newest(&self) -> LogNote {
        LogNote {
            last: self.recent.back().copied().or(self.last),
            verified: self.verified,
        }
    }

    /// What a commit of `next_offset` says.
    pub(in crate::kafka) fn note(&self, next_offset: i64) -> LogNote {
        let below = self.below(next_offset);
        let last = below.checked_sub(1).and_then(|at| self.recent.get(at));
        LogNote {
            last: last.copied().or(self.last),
            verified: self.verified,
        }
    }

    /// Notes that `next_offset` was committed.
    pub(in crate::kafka) fn committed(&mut self, next_offset: i64) {
        let below = self.below(next_offset);
        if let Some(last) = self.recent.drain(..below).next_back() {
            self.last = Some(last);
        }
    }

    /// The last committed record, and the one to compare beside it, where the former was not read
    /// again yet.
    pub(in crate::kafka) fn unverified(&self) -> Option<LogNote> {
        (self.last.is_some() && self.last != self.verified).then_some(LogNote {
            last: self.last,
            verified: self.verified,
        })
    }

    /// Notes that `record` was read again from the log.
    pub(in crate::kafka) fn verify(&mut self, record: RecordIdentity) {
        self.verified = Some(record);
    }

    fn below(&self, next_offset: i64) -> usize {
        self.recent
            .partition_point(|record| record.offset < next_offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64) -> RecordIdentity {
        RecordIdentity::of(offset, None, None, Some(&offset.to_le_bytes()))
    }

    fn delivered(offsets: impl IntoIterator<Item = i64>) -> Delivered {
        let mut delivered = Delivered::default();
        for offset in offsets {
            delivered.push(record(offset));
        }
        delivered
    }

    #[test]
    fn a_commit_names_the_last_record_below_it() {
        let mut delivered = delivered([3, 4, 8, 9]);
        assert_eq!(delivered.note(3).last, None);
        assert_eq!(delivered.note(4).last, Some(record(3)));
        // What lies between was never delivered.
        assert_eq!(delivered.note(7).last, Some(record(4)));
        assert_eq!(delivered.newest().last, Some(record(9)));
        delivered.committed(7);
        assert_eq!(delivered.note(8).last, Some(record(4)));
        assert_eq!(delivered.note(9).last, Some(record(8)));
        delivered.committed(10);
        assert_eq!(delivered.newest().last, Some(record(9)));
        assert_eq!(delivered.note(20).last, Some(record(9)));
    }

    #[test]
    fn what_the_last_commit_said_is_said_again_until_something_is_delivered() {
        let note = LogNote {
            last: Some(record(9)),
            verified: Some(record(5)),
        };
        let mut resumed = Delivered::resumed(note);
        assert_eq!(resumed.note(10).last, Some(record(9)));
        assert_eq!(resumed.unverified(), None);
        resumed.push(record(10));
        assert_eq!(resumed.unverified(), None, "not committed yet");
        resumed.committed(11);
        let unverified = resumed.unverified().unwrap();
        assert_eq!(unverified.last, Some(record(10)));
        assert_eq!(unverified.verified, Some(record(9)));
        resumed.verify(record(10));
        assert_eq!(resumed.unverified(), None);
    }

    #[test]
    fn the_memory_is_bounded_and_an_earlier_record_stands_in() {
        let mut delivered = delivered(0..200_000);
        assert!(delivered.recent.len() <= MAX_KEPT);
        let near = delivered.note(100_001).last.unwrap().offset;
        assert!((90_000..=100_000).contains(&near), "{near}");
        delivered.committed(200_000);
        assert_eq!(delivered.newest().last, Some(record(199_999)));
    }
}
