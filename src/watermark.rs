//! From what is in flight to what may be committed: one contiguous watermark a partition, and the
//! assignment that each record belongs to. Pure: knows no broker, no clock and no store.
//!
//! The promise: an offset is offered for commit only when every delivered record below it has been
//! acknowledged under the assignment that is still held. Offsets that were never delivered
//! (compaction, transaction markers) are nobody's and hold nothing up.

use std::collections::{HashMap, VecDeque};

use crate::document::{Generation, Receipt, TopicPartition};
use crate::source::CommitOffset;

/// The watermarks of all partitions that are assigned.
#[derive(Debug, Default)]
pub struct Watermarks {
    partitions: HashMap<TopicPartition, Progress>,
    in_flight: usize,
}

/// How far one partition has come, for lag views and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionProgress {
    /// The partition.
    pub partition: TopicPartition,
    /// The assignment that it is held under.
    pub generation: Generation,
    /// What may be committed: the offset after the last record of the contiguous done run.
    pub next_offset: Option<i64>,
    /// The oldest record that is not acknowledged yet; it is what holds the watermark.
    pub oldest_in_flight: Option<i64>,
    /// The newest record delivered under this assignment.
    pub last_delivered: Option<i64>,
    /// Records delivered and not yet acknowledged.
    pub in_flight: usize,
}

/// A delivered record, kept until the watermark passes it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    done: bool,
}

/// One partition under one assignment.
#[derive(Debug)]
struct Progress {
    generation: Generation,
    /// Delivered and not passed by the watermark, offsets ascending. The front is never done.
    entries: VecDeque<Entry>,
    /// Entries that are not done.
    in_flight: usize,
    last_delivered: Option<i64>,
    next_offset: Option<i64>,
    committed: Option<i64>,
}

impl Progress {
    fn new(generation: Generation) -> Self {
        Self {
            generation,
            entries: VecDeque::new(),
            in_flight: 0,
            last_delivered: None,
            next_offset: None,
            committed: None,
        }
    }

    /// Where `offset` stands among the entries. Without gaps that is its distance from the front,
    /// which spares the search.
    fn index_of(&self, offset: i64) -> Option<usize> {
        let front = self.entries.front()?.offset;
        let guess = usize::try_from(offset.checked_sub(front)?).ok()?;
        if self.entries.get(guess).is_some_and(|e| e.offset == offset) {
            return Some(guess);
        }
        self.entries
            .binary_search_by_key(&offset, |entry| entry.offset)
            .ok()
    }

    /// Marks `offset` done; false where it is unknown or done already.
    fn finish(&mut self, offset: i64) -> bool {
        let entry = self
            .index_of(offset)
            .and_then(|index| self.entries.get_mut(index));
        match entry {
            Some(entry) if !entry.done => entry.done = true,
            _ => return false,
        }
        self.in_flight -= 1;
        while let Some(front) = self.entries.front().filter(|front| front.done) {
            self.next_offset = Some(front.offset + 1);
            self.entries.pop_front();
        }
        true
    }

    fn commit_offset(&self, partition: &TopicPartition) -> Option<CommitOffset> {
        self.next_offset.map(|next_offset| CommitOffset {
            partition: partition.clone(),
            next_offset,
            generation: self.generation,
        })
    }
}

impl Watermarks {
    /// No partition yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes partitions over under `generation`. A partition held under an earlier one starts
    /// afresh: what was in flight is stale from here on. The same generation again changes nothing.
    pub fn assign(&mut self, partitions: &[TopicPartition], generation: Generation) {
        for partition in partitions {
            let held = self.partitions.get(partition);
            if held.is_some_and(|progress| progress.generation >= generation) {
                continue;
            }
            self.forget(partition);
            self.partitions
                .insert(partition.clone(), Progress::new(generation));
        }
    }

    /// Notes that a record is in flight. False, and nothing noted, where the record must be
    /// dropped: its assignment is not the one held (its next owner gets it again), or it was
    /// delivered under this assignment before (it is in flight or done).
    #[must_use = "a record that was not taken must not be processed"]
    pub fn deliver(&mut self, receipt: &Receipt) -> bool {
        let Some(progress) = self.partitions.get_mut(&receipt.position.partition) else {
            return false;
        };
        let offset = receipt.position.offset;
        if progress.generation != receipt.generation
            || progress.last_delivered.is_some_and(|last| last >= offset)
        {
            return false;
        }
        progress.entries.push_back(Entry {
            offset,
            done: false,
        });
        progress.last_delivered = Some(offset);
        progress.in_flight += 1;
        self.in_flight += 1;
        true
    }

    /// Notes that records are durable, in any order. What is stale, unknown or acknowledged
    /// before is ignored.
    pub fn acknowledge<'a>(&mut self, receipts: impl IntoIterator<Item = &'a Receipt>) {
        for receipt in receipts {
            let Some(progress) = self.partitions.get_mut(&receipt.position.partition) else {
                continue;
            };
            if progress.generation == receipt.generation && progress.finish(receipt.position.offset)
            {
                self.in_flight -= 1;
            }
        }
    }

    /// What advanced since [`Watermarks::mark_committed`].
    pub fn committable(&self) -> Vec<CommitOffset> {
        self.partitions
            .iter()
            .filter(|(_, progress)| progress.next_offset > progress.committed)
            .filter_map(|(partition, progress)| progress.commit_offset(partition))
            .collect()
    }

    /// Notes that offsets were committed, so that they are not offered again.
    pub fn mark_committed(&mut self, offsets: &[CommitOffset]) {
        for offset in offsets {
            if let Some(progress) = self.partitions.get_mut(&offset.partition)
                && progress.generation == offset.generation
            {
                progress.committed = progress.committed.max(Some(offset.next_offset));
            }
        }
    }

    /// Gives partitions up and says what is to be committed of them: every watermark that moved
    /// under this assignment, committed before or not, since a background commit may have failed.
    pub fn revoke(&mut self, partitions: &[TopicPartition]) -> Vec<CommitOffset> {
        let offsets = partitions
            .iter()
            .filter_map(|partition| self.partitions.get(partition)?.commit_offset(partition))
            .collect();
        self.lose(partitions);
        offsets
    }

    /// Gives partitions up without a commit: somebody else owns them already.
    pub fn lose(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.forget(partition);
        }
    }

    /// Whether `generation` is the assignment under which `partition` is held.
    pub fn holds(&self, partition: &TopicPartition, generation: Generation) -> bool {
        self.partitions
            .get(partition)
            .is_some_and(|progress| progress.generation == generation)
    }

    /// Records delivered and not yet acknowledged.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Records above the watermarks, those that are done included: what this type holds in memory.
    pub fn window(&self) -> usize {
        self.partitions
            .values()
            .map(|progress| progress.entries.len())
            .sum()
    }

    /// Records of `partitions` delivered and not yet acknowledged.
    pub fn in_flight_of(&self, partitions: &[TopicPartition]) -> usize {
        partitions
            .iter()
            .filter_map(|partition| self.partitions.get(partition))
            .map(|progress| progress.in_flight)
            .sum()
    }

    /// How far each partition has come, in no particular order.
    pub fn progress(&self) -> impl Iterator<Item = PartitionProgress> {
        self.partitions
            .iter()
            .map(|(partition, progress)| PartitionProgress {
                partition: partition.clone(),
                generation: progress.generation,
                next_offset: progress.next_offset,
                oldest_in_flight: progress.entries.front().map(|entry| entry.offset),
                last_delivered: progress.last_delivered,
                in_flight: progress.in_flight,
            })
    }

    fn forget(&mut self, partition: &TopicPartition) {
        if let Some(progress) = self.partitions.remove(partition) {
            self.in_flight -= progress.in_flight;
        }
    }
}

#[cfg(test)]
mod tests;
