//! What lies on the poll thread's desk: the partitions it holds, under which generation, and the
//! chunk of records that waits for room in the channel. Pure: knows no client.

use std::collections::HashMap;
use std::sync::Arc;

use crate::document::{Generation, TopicPartition};
use crate::source::{CommitOffset, SourceRecord};

/// Bounds of one chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkBounds {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

/// A partition that is assigned.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) partition: TopicPartition,
    pub(super) generation: Generation,
    /// Whether its revocation has begun: nothing of it is delivered any more.
    pub(super) leaving: bool,
    /// The offset after the newest record taken under this assignment.
    pub(super) next: Option<i64>,
    /// Where a bounded source stops: the offset after the last record wanted.
    pub(super) end: Option<i64>,
    /// Whether a bounded source has reached that end.
    pub(super) ended: bool,
    /// Whether fetching was paused for that.
    pub(super) rests: bool,
    /// Where a bounded source's group is.
    committed: Option<i64>,
}

/// The desk itself.
#[derive(Debug)]
pub(super) struct Desk {
    topics: HashMap<Arc<str>, HashMap<i32, Held>>,
    generation: u64,
    chunk: Vec<SourceRecord>,
    chunk_bytes: usize,
    bounds: ChunkBounds,
    /// Whether fetching is paused because the channel is full.
    pub(super) paused: bool,
    /// What waits to be committed in the background.
    pending_commits: HashMap<TopicPartition, CommitOffset>,
}

impl Desk {
    pub(super) fn new(bounds: ChunkBounds) -> Self {
        Self {
            topics: HashMap::new(),
            generation: 0,
            chunk: Vec::new(),
            chunk_bytes: 0,
            bounds,
            paused: false,
            pending_commits: HashMap::new(),
        }
    }

    /// Takes partitions over under a new generation.
    pub(super) fn assign(
        &mut self,
        partitions: &[TopicPartition],
        ends: &HashMap<TopicPartition, i64>,
    ) -> Generation {
        self.generation += 1;
        let generation = Generation(self.generation);
        for partition in partitions {
            let held = Held {
                partition: partition.clone(),
                generation,
                leaving: false,
                next: None,
                end: ends.get(partition).copied(),
                ended: false,
                rests: false,
                committed: None,
            };
            self.topics
                .entry(Arc::clone(&partition.topic))
                .or_default()
                .insert(partition.partition, held);
        }
        generation
    }

    /// Notes where a bounded partition begins under this assignment, everything below being done.
    pub(super) fn begin_at(&mut self, partition: &TopicPartition, next: i64) {
        let Some(held) = self.get_mut(&partition.topic, partition.partition) else {
            return;
        };
        held.next = Some(next);
        held.committed = Some(next);
        held.ended = held.end.is_some_and(|end| next >= end);
        if held.ended {
            // No record will lead to a commit here, and the others are to see that there is none.
            let offset = CommitOffset {
                partition: partition.clone(),
                next_offset: next,
                generation: held.generation,
            };
            self.pending_commits.insert(partition.clone(), offset);
        }
    }

    /// Notes that everything there is below the end of a bounded partition has been delivered, if
    /// nothing came in since `next`. Once that is committed, the end itself is: what lies between is
    /// a gap that nobody will deliver.
    pub(super) fn reach_end(
        &mut self,
        partition: &TopicPartition,
        generation: Generation,
        next: i64,
    ) {
        let held = self.get_mut(&partition.topic, partition.partition);
        if let Some(held) = held
            && held.generation == generation
            && held.next == Some(next)
        {
            held.ended = true;
            self.settle(partition);
        }
    }

    /// Lets the end of a bounded partition be committed where a gap is all that is left.
    fn settle(&mut self, partition: &TopicPartition) {
        let Some(held) = self.get_mut(&partition.topic, partition.partition) else {
            return;
        };
        let Some(end) = held.end.filter(|_| held.ended && !held.leaving) else {
            return;
        };
        if held.committed >= held.next && held.committed < Some(end) {
            let offset = CommitOffset {
                partition: partition.clone(),
                next_offset: end,
                generation: held.generation,
            };
            self.pending_commits.insert(partition.clone(), offset);
        }
    }

    /// Whether a revocation is under way.
    pub(super) fn is_leaving(&self) -> bool {
        self.all().any(|held| held.leaving)
    }

    /// Bounded partitions that have ended and are still fetched.
    pub(super) fn take_newly_ended(&mut self) -> Vec<TopicPartition> {
        let held = self.topics.values_mut().flat_map(HashMap::values_mut);
        held.filter(|held| held.ended && !held.rests)
            .map(|held| {
                held.rests = true;
                held.partition.clone()
            })
            .collect()
    }

    /// Begins a revocation: records of these partitions that wait in the chunk are dropped, and
    /// none is taken any more. Gives the partitions that were held.
    pub(super) fn begin_leaving(&mut self, partitions: &[TopicPartition]) -> Vec<TopicPartition> {
        let mut leaving = Vec::with_capacity(partitions.len());
        for partition in partitions {
            if let Some(held) = self.get_mut(&partition.topic, partition.partition) {
                held.leaving = true;
                leaving.push(partition.clone());
            }
        }
        self.chunk
            .retain(|record| !leaving.contains(&record.position.partition));
        self.chunk_bytes = self.chunk.iter().map(SourceRecord::size_bytes).sum();
        leaving
    }

    /// Lets partitions go.
    pub(super) fn forget(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            if let Some(held) = self.topics.get_mut(&partition.topic) {
                held.remove(&partition.partition);
            }
            self.pending_commits.remove(partition);
        }
    }

    pub(super) fn get_mut(&mut self, topic: &str, partition: i32) -> Option<&mut Held> {
        self.topics.get_mut(topic)?.get_mut(&partition)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Held> {
        self.topics.values().flat_map(HashMap::values)
    }

    pub(super) fn partitions(&self) -> Vec<TopicPartition> {
        self.all().map(|held| held.partition.clone()).collect()
    }

    /// Whether a record of `generation` may still be delivered.
    pub(super) fn delivers(&self, partition: &TopicPartition, generation: Generation) -> bool {
        self.held(partition)
            .is_some_and(|held| held.generation == generation && !held.leaving)
    }

    fn held(&self, partition: &TopicPartition) -> Option<&Held> {
        self.topics.get(&partition.topic)?.get(&partition.partition)
    }

    /// The offsets of `offered` whose assignment is still held; `leaving` ones only on request.
    pub(super) fn still_held(
        &self,
        offered: &[CommitOffset],
        with_leaving: bool,
    ) -> Vec<CommitOffset> {
        let holds = |offset: &&CommitOffset| {
            self.held(&offset.partition).is_some_and(|held| {
                held.generation == offset.generation && (with_leaving || !held.leaving)
            })
        };
        offered.iter().filter(holds).cloned().collect()
    }

    /// Adds offsets to those that wait to be committed; the furthest of a partition counts.
    pub(super) fn add_pending_commits(&mut self, offsets: &[CommitOffset]) {
        for offset in self.still_held(offsets, true) {
            let waiting = self
                .pending_commits
                .entry(offset.partition.clone())
                .or_insert_with(|| offset.clone());
            if waiting.generation < offset.generation || waiting.next_offset < offset.next_offset {
                *waiting = offset;
            }
        }
    }

    /// Takes what waits to be committed; that of `leaving` partitions only on request, it waits for
    /// the last commit of their revocation.
    pub(super) fn take_pending_commits(&mut self, with_leaving: bool) -> Vec<CommitOffset> {
        let waiting: Vec<CommitOffset> = self.pending_commits.values().cloned().collect();
        let taken = self.still_held(&waiting, with_leaving);
        for offset in &taken {
            self.pending_commits.remove(&offset.partition);
        }
        taken
    }

    /// Notes that offsets were committed past those that wait: the older must not follow.
    pub(super) fn commit_succeeded(&mut self, offsets: &[CommitOffset]) {
        for offset in offsets {
            let passed = self
                .pending_commits
                .get(&offset.partition)
                .is_some_and(|waiting| waiting.next_offset <= offset.next_offset);
            if passed {
                self.pending_commits.remove(&offset.partition);
            }
            if let Some(held) = self.get_mut(&offset.partition.topic, offset.partition.partition)
                && held.generation == offset.generation
                && held.end.is_some()
            {
                held.committed = held.committed.max(Some(offset.next_offset));
                self.settle(&offset.partition);
            }
        }
    }

    /// Adds a record to the chunk.
    pub(super) fn push(&mut self, record: SourceRecord) {
        self.chunk_bytes += record.size_bytes();
        self.chunk.push(record);
    }

    pub(super) fn chunk_is_empty(&self) -> bool {
        self.chunk.is_empty()
    }

    /// Whether the chunk has reached a bound. One record above it all makes a chunk of its own.
    pub(super) fn chunk_is_full(&self) -> bool {
        self.chunk.len() >= self.bounds.records || self.chunk_bytes >= self.bounds.bytes
    }

    /// The chunk as it is, and an empty one in its place.
    pub(super) fn take_chunk(&mut self) -> Vec<SourceRecord> {
        self.chunk_bytes = 0;
        std::mem::take(&mut self.chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::RecordPosition;

    fn partition(number: i32) -> TopicPartition {
        TopicPartition::new("news", number)
    }

    fn desk() -> Desk {
        Desk::new(ChunkBounds {
            records: 3,
            bytes: 100,
        })
    }

    fn record(number: i32, offset: i64, bytes: usize) -> SourceRecord {
        SourceRecord {
            position: RecordPosition {
                partition: partition(number),
                offset,
            },
            generation: Generation(1),
            timestamp_ms: None,
            key: None,
            value: Some(vec![0; bytes]),
            headers: Vec::new(),
            fault: None,
        }
    }

    fn offset(number: i32, next_offset: i64, generation: Generation) -> CommitOffset {
        CommitOffset {
            partition: partition(number),
            next_offset,
            generation,
        }
    }

    #[test]
    fn a_chunk_is_bounded_by_records_and_by_bytes() {
        let mut desk = desk();
        desk.push(record(0, 0, 99));
        assert!(!desk.chunk_is_full());
        desk.push(record(0, 1, 1));
        assert!(desk.chunk_is_full());
        assert_eq!(desk.take_chunk().len(), 2);
        for at in 2..5 {
            assert!(!desk.chunk_is_full());
            desk.push(record(0, at, 0));
        }
        assert!(desk.chunk_is_full());
    }

    #[test]
    fn records_of_a_leaving_partition_are_dropped() {
        let mut desk = desk();
        let generation = desk.assign(&[partition(0), partition(1)], &HashMap::new());
        desk.push(record(0, 5, 1));
        desk.push(record(1, 9, 1));
        assert_eq!(
            desk.begin_leaving(&[partition(0), partition(4)]),
            [partition(0)]
        );
        assert!(!desk.delivers(&partition(0), generation));
        assert!(desk.delivers(&partition(1), generation));
        let left = desk.take_chunk();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].position.partition, partition(1));
    }

    #[test]
    fn offsets_of_another_assignment_are_left_out() {
        let mut desk = desk();
        let first = desk.assign(&[partition(0), partition(1)], &HashMap::new());
        desk.begin_leaving(&[partition(1)]);
        let offered = [
            offset(0, 5, first),
            offset(1, 5, first),
            offset(2, 5, first),
        ];
        assert_eq!(desk.still_held(&offered, false), offered[..1]);
        assert_eq!(desk.still_held(&offered, true), offered[..2]);
        desk.forget(&[partition(0)]);
        desk.assign(&[partition(0)], &HashMap::new());
        assert_eq!(desk.still_held(&offered, false), []);
    }

    #[test]
    fn the_furthest_offset_waits_and_never_follows_a_later_one() {
        let mut desk = desk();
        let generation = desk.assign(&[partition(0)], &HashMap::new());
        let at = |next| offset(0, next, generation);
        desk.add_pending_commits(&[at(7), at(5), offset(3, 5, generation)]);
        desk.commit_succeeded(&[at(6)]);
        assert_eq!(desk.take_pending_commits(false), [at(7)]);
        desk.add_pending_commits(&[at(7)]);
        desk.commit_succeeded(&[at(8)]);
        assert_eq!(desk.take_pending_commits(false), []);
    }

    #[test]
    fn what_waits_of_a_leaving_partition_goes_with_its_last_commit() {
        let mut desk = desk();
        let generation = desk.assign(&[partition(0), partition(1)], &HashMap::new());
        desk.begin_leaving(&[partition(1)]);
        desk.add_pending_commits(&[offset(0, 5, generation), offset(1, 5, generation)]);
        assert_eq!(desk.take_pending_commits(false), [offset(0, 5, generation)]);
        assert_eq!(desk.take_pending_commits(true), [offset(1, 5, generation)]);
        desk.add_pending_commits(&[offset(1, 5, generation)]);
        desk.forget(&[partition(1)]);
        assert_eq!(desk.take_pending_commits(true), []);
    }

    #[test]
    fn a_gap_at_the_end_of_a_range_is_committed_once_everything_before_it_is() {
        let ends = HashMap::from([(partition(0), 10), (partition(1), 10), (partition(2), 10)]);
        let mut desk = desk();
        let generation = desk.assign(&[partition(0), partition(1), partition(2)], &ends);
        for (number, next) in [(0, 3), (1, 3), (2, 10)] {
            desk.begin_at(&partition(number), next);
        }
        let at = |number, next| offset(number, next, generation);
        // Partition 2 was done before: the others are to see that.
        assert_eq!(desk.take_pending_commits(false), [at(2, 10)]);
        assert_eq!(desk.take_newly_ended(), [partition(2)]);

        // Nothing was delivered of partition 0: its end can be committed at once.
        desk.reach_end(&partition(0), generation, 3);
        assert_eq!(desk.take_pending_commits(false), [at(0, 10)]);
        // Partition 1 has delivered up to 7 and committed up to 5.
        desk.get_mut("news", 1).unwrap().next = Some(7);
        desk.reach_end(&partition(1), generation, 6);
        assert_eq!(
            desk.take_newly_ended(),
            [partition(0)],
            "a record came in meanwhile"
        );
        desk.reach_end(&partition(1), generation, 7);
        desk.commit_succeeded(&[at(1, 5)]);
        assert_eq!(desk.take_pending_commits(false), []);
        desk.commit_succeeded(&[at(1, 7)]);
        assert_eq!(desk.take_pending_commits(false), [at(1, 10)]);
        desk.commit_succeeded(&[at(1, 10)]);
        assert_eq!(desk.take_pending_commits(false), []);
    }

    #[test]
    fn the_end_of_another_assignment_or_of_a_leaving_partition_is_left_alone() {
        let ends = HashMap::from([(partition(0), 10)]);
        let mut desk = desk();
        let first = desk.assign(&[partition(0)], &ends);
        desk.begin_at(&partition(0), 3);
        desk.forget(&[partition(0)]);
        desk.assign(&[partition(0)], &ends);
        desk.begin_at(&partition(0), 3);
        desk.reach_end(&partition(0), first, 3);
        assert_eq!(desk.take_pending_commits(false), []);
        let second = desk.get_mut("news", 0).unwrap().generation;
        desk.begin_leaving(&[partition(0)]);
        desk.reach_end(&partition(0), second, 3);
        assert_eq!(desk.take_pending_commits(false), []);
    }
}
