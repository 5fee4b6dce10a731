//! What lies on the poll thread's desk: the partitions it holds, under which generation, and the
//! chunk of records that waits for room in the channel. Pure: knows no client.

pub(in crate::kafka) mod delivered;
pub(in crate::kafka) mod held;

use std::collections::HashMap;
use std::sync::Arc;

use crate::document::{Generation, TopicPartition};
use crate::kafka::consumer::assignment::held::{Begin, Held};
use crate::kafka::log_identity::{LogNote, RecordIdentity};
use crate::source::{CommitOffset, SourceRecord};

/// Bounds of one chunk.
#[derive(Debug, Clone, Copy)]
pub(in crate::kafka) struct ChunkBounds {
    pub(in crate::kafka) records: usize,
    pub(in crate::kafka) bytes: usize,
}

/// A partition as the assignment knows it.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct Position {
    pub(in crate::kafka) partition: TopicPartition,
    pub(in crate::kafka) generation: Generation,
    pub(in crate::kafka) position: Option<i64>,
    /// Whether it is read, and everything that was delivered is durable.
    pub(in crate::kafka) is_settled: bool,
    pub(in crate::kafka) checking: bool,
}

/// A partition whose log is to be compared with what was read before.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct ToCheck {
    pub(in crate::kafka) partition: TopicPartition,
    pub(in crate::kafka) generation: Generation,
    /// Whether it is new under this assignment: the group's commits say where it begins.
    pub(in crate::kafka) is_new: bool,
    /// Where it goes on, as far as this assignment knows.
    pub(in crate::kafka) next: Option<i64>,
    /// What this process knows of the log.
    pub(in crate::kafka) log: LogNote,
}

/// The desk itself.
#[derive(Debug)]
pub(in crate::kafka) struct Desk {
    topics: HashMap<Arc<str>, HashMap<i32, Held>>,
    generation: u64,
    chunk: Vec<SourceRecord>,
    chunk_bytes: usize,
    bounds: ChunkBounds,
    /// Whether fetching is paused because the channel is full.
    pub(in crate::kafka) paused: bool,
    /// What waits to be committed in the background.
    pending_commits: HashMap<TopicPartition, CommitOffset>,
    /// A delivered record of each partition that this process has held before.
    known: HashMap<TopicPartition, RecordIdentity>,
}

impl Desk {
    pub(in crate::kafka) fn new(bounds: ChunkBounds) -> Self {
        Self {
            topics: HashMap::new(),
            generation: 0,
            chunk: Vec::new(),
            chunk_bytes: 0,
            bounds,
            paused: false,
            pending_commits: HashMap::new(),
            known: HashMap::new(),
        }
    }

    /// Takes partitions over under a new generation. Nothing of them is taken before their logs
    /// have been checked.
    pub(in crate::kafka) fn assign(&mut self, partitions: &[TopicPartition]) -> Generation {
        self.generation += 1;
        let generation = Generation(self.generation);
        for partition in partitions {
            let held = Held::new(partition.clone(), generation);
            self.topics
                .entry(Arc::clone(&partition.topic))
                .or_default()
                .insert(partition.partition, held);
        }
        generation
    }

    /// Checks all partitions that are being read once more, since the client lost an offset.
    pub(in crate::kafka) fn check_again(&mut self) -> Vec<(TopicPartition, Generation)> {
        let held = self.topics.values_mut().flat_map(HashMap::values_mut);
        held.filter(|held| !held.ended && !held.leaving && !held.checking)
            .map(|held| {
                held.checking = true;
                (held.partition.clone(), held.generation)
            })
            .collect()
    }

    /// What is known of those of `partitions` whose check is still wanted.
    pub(in crate::kafka) fn to_check(
        &self,
        partitions: &[(TopicPartition, Generation)],
    ) -> Vec<ToCheck> {
        let wanted = partitions.iter().filter_map(|(partition, generation)| {
            self.held(partition)
                .filter(|held| held.generation == *generation && held.checking && !held.leaving)
        });
        wanted
            .map(|held| ToCheck {
                partition: held.partition.clone(),
                generation: held.generation,
                is_new: !held.begun,
                next: held.next,
                log: if held.begun {
                    held.delivered.newest()
                } else {
                    LogNote {
                        last: self.known.get(&held.partition).copied(),
                        verified: None,
                    }
                },
            })
            .collect()
    }

    /// Lets a partition begin or go on; false where its check is not wanted any more.
    pub(in crate::kafka) fn begin(&mut self, begin: &Begin) -> bool {
        let Begin { partition, .. } = begin;
        let held = self.get_mut(&partition.topic, partition.partition);
        let Some(held) = held
            .filter(|held| held.generation == begin.generation && held.checking && !held.leaving)
        else {
            return false;
        };
        held.checking = false;
        let mut done_before = None;
        if !held.begun {
            held.begin(begin);
            done_before = begin.next.filter(|_| held.ended);
        }
        held.continue_at(begin.at);
        if let Some(next) = done_before {
            // No record will lead to a commit here, and the others are to see that there is none.
            self.add_pending_commit(begin.generation, partition, next);
        }
        self.settle(partition);
        true
    }

    fn add_pending_commit(
        &mut self,
        generation: Generation,
        partition: &TopicPartition,
        next_offset: i64,
    ) {
        let offset = CommitOffset {
            partition: partition.clone(),
            next_offset,
            generation,
        };
        self.pending_commits.insert(partition.clone(), offset);
    }

    /// What a commit says of the log that it belongs to.
    pub(in crate::kafka) fn log_note(&self, offset: &CommitOffset) -> LogNote {
        let held = self.held(&offset.partition);
        held.filter(|held| held.generation == offset.generation)
            .map(|held| held.delivered.note(offset.next_offset))
            .unwrap_or_default()
    }

    /// Partitions with committed records that were not read again yet.
    pub(in crate::kafka) fn unverified(&self) -> Vec<(TopicPartition, Generation, LogNote)> {
        self.all()
            .filter(|held| !held.checking && !held.leaving)
            .filter_map(|held| {
                let log = held.delivered.unverified()?;
                Some((held.partition.clone(), held.generation, log))
            })
            .collect()
    }

    /// Notes that a committed record was read again from the log.
    pub(in crate::kafka) fn verify(
        &mut self,
        partition: &TopicPartition,
        generation: Generation,
        record: RecordIdentity,
    ) {
        let held = self.get_mut(&partition.topic, partition.partition);
        if let Some(held) = held.filter(|held| held.generation == generation) {
            held.delivered.verify(record);
        }
    }

    /// Notes that everything there is below the end of a bounded partition has been delivered, if
    /// nothing came in since `next`. Once that is committed, the end itself is: what lies between is
    /// a gap that nobody will deliver.
    pub(in crate::kafka) fn reach_end(
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

    /// Notes that the record at `offset` of a bounded partition is not delivered.
    pub(in crate::kafka) fn skip(&mut self, partition: &TopicPartition, offset: i64) {
        if let Some(held) = self.get_mut(&partition.topic, partition.partition) {
            held.next = Some(offset + 1);
            held.ended = held.end.is_some_and(|end| offset + 1 >= end);
            self.settle(partition);
        }
    }

    /// Lets what will not be delivered (skipped, gone, or behind the last record of a range) be committed, once
    /// everything that was delivered before it is.
    fn settle(&mut self, partition: &TopicPartition) {
        let held = self.held(partition);
        let passed = held.and_then(|held| Some((held.generation, held.passed()?)));
        if let Some((generation, passed)) = passed {
            self.add_pending_commit(generation, partition, passed);
        }
    }

    /// Where the partitions are.
    pub(in crate::kafka) fn positions(&self) -> Vec<Position> {
        let position = |held: &Held| Position {
            partition: held.partition.clone(),
            generation: held.generation,
            position: held.position,
            is_settled: held.is_settled() && !self.paused,
            checking: held.checking,
        };
        self.all()
            .filter(|held| !held.leaving)
            .map(position)
            .collect()
    }

    /// Lets the end of a partition be committed where nothing will be delivered between `from`, everything
    /// below which is committed, and `to`. False where something was delivered meanwhile.
    pub(in crate::kafka) fn pass_gap(
        &mut self,
        partition: &TopicPartition,
        generation: Generation,
        from: i64,
        to: i64,
    ) -> bool {
        let held = self.get_mut(&partition.topic, partition.partition);
        let Some(held) = held.filter(|held| {
            held.generation == generation && held.is_settled() && held.position == Some(from)
        }) else {
            return false;
        };
        held.next = Some(to);
        self.settle(partition);
        true
    }

    /// Whether a bounded partition has reached its end.
    pub(in crate::kafka) fn has_ended(&self, partition: &TopicPartition) -> bool {
        self.held(partition).is_some_and(|held| held.ended)
    }

    /// Bounded partitions that have ended.
    pub(in crate::kafka) fn ended(&self) -> Vec<TopicPartition> {
        let ended = self.all().filter(|held| held.ended && held.begun);
        let ended = ended.filter(|held| !held.leaving && !held.checking);
        ended.map(|held| held.partition.clone()).collect()
    }

    /// Lets a bounded partition that has ended be read up to `last`, behind its former end. What was decided
    /// is committed also where there is nothing to read. Gives what is to be checked.
    pub(in crate::kafka) fn read_on(
        &mut self,
        partition: &TopicPartition,
        last: i64,
    ) -> Option<(TopicPartition, Generation)> {
        let held = self.get_mut(&partition.topic, partition.partition)?;
        let end = held.end.filter(|_| held.ended)?;
        let generation = held.generation;
        held.next = held.next.max(Some(end));
        let reads = last > end;
        if reads {
            held.end = Some(last);
            (held.ended, held.rests, held.checking) = (false, false, true);
        }
        self.add_pending_commit(generation, partition, end);
        reads.then(|| (partition.clone(), generation))
    }

    /// Bounded partitions that have ended and are still fetched.
    pub(in crate::kafka) fn take_newly_ended(&mut self) -> Vec<TopicPartition> {
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
    pub(in crate::kafka) fn begin_leaving(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Vec<TopicPartition> {
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
    pub(in crate::kafka) fn forget(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            let held = self.topics.get_mut(&partition.topic);
            let held = held.and_then(|held| held.remove(&partition.partition));
            if let Some(record) = held.and_then(|held| held.delivered.newest().last) {
                self.known.insert(partition.clone(), record);
            }
            self.pending_commits.remove(partition);
        }
    }

    pub(in crate::kafka) fn get_mut(&mut self, topic: &str, partition: i32) -> Option<&mut Held> {
        self.topics.get_mut(topic)?.get_mut(&partition)
    }

    pub(in crate::kafka) fn all(&self) -> impl Iterator<Item = &Held> {
        self.topics.values().flat_map(HashMap::values)
    }

    pub(in crate::kafka) fn partitions(&self) -> Vec<TopicPartition> {
        self.all().map(|held| held.partition.clone()).collect()
    }

    /// Whether a record of `generation` may still be delivered.
    pub(in crate::kafka) fn delivers(
        &self,
        partition: &TopicPartition,
        generation: Generation,
    ) -> bool {
        self.held(partition)
            .is_some_and(|held| held.generation == generation && !held.leaving)
    }

    fn held(&self, partition: &TopicPartition) -> Option<&Held> {
        self.topics.get(&partition.topic)?.get(&partition.partition)
    }

    /// The offsets of `offered` whose assignment is still held; `leaving` ones only on request.
    pub(in crate::kafka) fn still_held(
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
    pub(in crate::kafka) fn add_pending_commits(&mut self, offsets: &[CommitOffset]) {
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
    pub(in crate::kafka) fn take_pending_commits(
        &mut self,
        with_leaving: bool,
    ) -> Vec<CommitOffset> {
        let waiting: Vec<CommitOffset> = self.pending_commits.values().cloned().collect();
        let taken = self.still_held(&waiting, with_leaving);
        for offset in &taken {
            self.pending_commits.remove(&offset.partition);
        }
        taken
    }

    /// Notes that offsets were committed past those that wait: the older must not follow.
    pub(in crate::kafka) fn commit_succeeded(&mut self, offsets: &[CommitOffset]) {
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
            {
                held.delivered.committed(offset.next_offset);
                held.position = held.position.max(Some(offset.next_offset));
                self.settle(&offset.partition);
            }
        }
    }

    /// Adds a record to the chunk.
    pub(in crate::kafka) fn push(&mut self, record: SourceRecord) {
        self.chunk_bytes += record.size_bytes();
        self.chunk.push(record);
    }

    pub(in crate::kafka) fn chunk_is_empty(&self) -> bool {
        self.chunk.is_empty()
    }

    /// Whether the chunk has reached a bound. One record above it all makes a chunk of its own.
    pub(in crate::kafka) fn chunk_is_full(&self) -> bool {
        self.chunk.len() >= self.bounds.records || self.chunk_bytes >= self.bounds.bytes
    }

    /// The chunk as it is, and an empty one in its place.
    pub(in crate::kafka) fn take_chunk(&mut self) -> Vec<SourceRecord> {
        self.chunk_bytes = 0;
        std::mem::take(&mut self.chunk)
    }
}

#[cfg(test)]
mod tests;
