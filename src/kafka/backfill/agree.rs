//! What the workers of a job agree upon, by way of the metadata of their group's commits: whoever
//! holds a partition first writes its span there, everybody after reads it. Pure but for the locks.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::document::TopicPartition;
use crate::kafka::backfill::{RangePosition, RangeProgress, Span};
use crate::kafka::log_identity::LogNote;

/// What a commit of the job's group says beside its offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The run that decided on the span; a job that starts anew has another one.
    pub(super) run: String,
    pub(super) begin: i64,
    pub(super) end: i64,
    /// The log that was read, as the commits of the live group say it; absent in older notes.
    #[serde(skip)]
    pub(super) log: LogNote,
    /// Behind the range deletions are read up to here; absent: none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) deletions: Option<i64>,
    /// Whether it is not decided yet how far that is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) undecided: bool,
    /// Finished runs in whose place this one came: what the group has committed for them says nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) replaces: Vec<String>,
}

impl Note {
    /// A commit of anybody else says nothing.
    pub(super) fn parse(metadata: &str) -> Option<Self> {
        let mut note: Self = serde_json::from_str(metadata).ok()?;
        note.log = LogNote::parse(metadata);
        (0 <= note.begin && note.begin <= note.end).then_some(note)
    }

    /// After the last offset that is read.
    fn last(&self) -> i64 {
        self.deletions.unwrap_or(self.end).max(self.end)
    }

    pub(super) fn to_metadata(&self) -> String {
        #[derive(Serialize)]
        struct Metadata<'a> {
            #[serde(flatten)]
            note: &'a Note,
            #[serde(flatten)]
            log: LogNote,
        }
        let metadata = Metadata {
            note: self,
            log: self.log,
        };
        // Numbers and a short text: there is nothing in it that could fail.
        serde_json::to_string(&metadata).unwrap_or_default()
    }
}

/// What the group has committed of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(super) note: Note,
    pub(super) next: i64,
}

impl State {
    fn is_done(&self) -> bool {
        !self.note.undecided && self.next >= self.note.last()
    }
}

/// Where a worker goes on in a partition that it has just got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) partition: TopicPartition,
    pub(crate) next: i64,
    /// After the last offset that is read, deletions behind the range included.
    pub(crate) end: i64,
    /// What the last commit of this run says of the log.
    pub(crate) log: LogNote,
    /// Whether nothing of the span is done.
    pub(crate) untouched: bool,
    /// Whether the span is to be written for the others.
    pub(crate) is_new: bool,
}

/// A job as one worker sees it.
#[derive(Debug)]
pub(crate) struct JobPlan {
    group: String,
    /// Name of the spans that this worker decides on.
    run: String,
    /// What this worker would read of each partition, as the topics were at its start.
    fresh: HashMap<TopicPartition, Span>,
    /// Where the live group is in partitions behind whose ranges deletions are read; `None`: in none.
    live: Option<Mutex<HashMap<TopicPartition, i64>>>,
    /// Runs that are over: what they wrote is no longer in force.
    finished_runs: Mutex<HashSet<String>>,
    /// Runs that partitions spoke of when this worker came. Only these are named as replaced: those before them
    /// are found nowhere any more, and the note of a commit is short.
    found_runs: HashSet<String>,
    was_finished: bool,
    resumed: bool,
    done_at_start: u64,
    notes: Mutex<HashMap<TopicPartition, Note>>,
    positions: Mutex<Vec<RangePosition>>,
    ranges_done: AtomicBool,
    finished: AtomicBool,
}

impl JobPlan {
    /// Looks at what the group has committed: an unfinished run is gone on with, a finished one is
    /// over and the job begins anew with `fresh` under the name `run`. `live` says how far the live
    /// group is, where deletions behind the ranges are to be read.
    pub(super) fn new(
        group: String,
        run: String,
        fresh: HashMap<TopicPartition, Span>,
        live: Option<HashMap<TopicPartition, i64>>,
        states: &HashMap<TopicPartition, State>,
    ) -> Self {
        let mut plan = Self {
            group,
            run,
            fresh,
            live: live.map(Mutex::new),
            finished_runs: Mutex::default(),
            found_runs: states
                .values()
                .map(|state| state.note.run.clone())
                .collect(),
            was_finished: false,
            resumed: false,
            done_at_start: 0,
            notes: Mutex::default(),
            positions: Mutex::default(),
            ranges_done: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        };
        plan.learn_replaced(states);
        let over = plan.is_over(states);
        plan.resumed = !over && !states.is_empty();
        plan.was_finished = over;
        if over {
            plan.finished_runs
                .get_mut()
                .extend(plan.found_runs.iter().cloned());
        }
        plan.note_states(states);
        plan.done_at_start = plan
            .positions
            .get_mut()
            .iter()
            .map(RangePosition::done)
            .sum();
        plan
    }

    /// Whether the job was finished before this worker came.
    pub(crate) fn was_finished(&self) -> bool {
        self.was_finished
    }

    /// Takes in which runs others have replaced: a worker may have been killed before it wrote its part of
    /// the run that came in their place.
    fn learn_replaced(&self, states: &HashMap<TopicPartition, State>) {
        let replaced = states.values().flat_map(|state| &state.note.replaces);
        self.finished_runs.lock().extend(replaced.cloned());
    }

    fn is_in_force(&self, state: &State) -> bool {
        !self.finished_runs.lock().contains(&state.note.run)
    }

    /// Decides about partitions that have come to this worker, given what the group has committed.
    pub(super) fn agree(
        &self,
        partitions: &[TopicPartition],
        states: &HashMap<TopicPartition, State>,
    ) -> Vec<Agreed> {
        self.learn_replaced(states);
        let mut notes = self.notes.lock();
        partitions
            .iter()
            .map(|partition| {
                let (note, next, is_new) = self.decide(partition, states.get(partition));
                let agreed = Agreed {
                    partition: partition.clone(),
                    next,
                    end: note.last(),
                    log: note.log,
                    untouched: next <= note.begin,
                    is_new,
                };
                notes.insert(partition.clone(), note);
                agreed
            })
            .collect()
    }

    fn decide(&self, partition: &TopicPartition, state: Option<&State>) -> (Note, i64, bool) {
        if let Some(state) = state.filter(|state| self.is_in_force(state)) {
            let mut note = state.note.clone();
            if self.live.is_none() {
                note.deletions = None;
                note.undecided = false;
            }
            return (note, state.next.max(state.note.begin), false);
        }
        let span = self.fresh_span(partition);
        let finished = self.finished_runs.lock();
        let mut replaces: Vec<String> = finished.intersection(&self.found_runs).cloned().collect();
        drop(finished);
        replaces.sort_unstable();
        let note = Note {
            run: self.run.clone(),
            begin: span.begin,
            end: span.end,
            log: LogNote::default(),
            deletions: None,
            undecided: self.has_live_group(),
            replaces,
        };
        (note, span.begin, true)
    }

    /// Whether deletions may stand behind the ranges: a group that has committed nothing deletes nothing.
    fn has_live_group(&self) -> bool {
        let live = self.live.as_ref();
        live.is_some_and(|live| !live.lock().is_empty())
    }

    /// Up to where deletions are read behind a range that ends at `end`.
    fn deletions_behind(&self, partition: &TopicPartition, end: i64) -> Option<i64> {
        let live = self.live.as_ref()?.lock().get(partition).copied();
        live.filter(|live| *live > end)
    }

    /// Takes in where the live group is by now.
    pub(super) fn note_live(&self, now: HashMap<TopicPartition, i64>) {
        if let Some(live) = &self.live {
            *live.lock() = now;
        }
    }

    /// Whether the ranges of all partitions are read and committed. Only then deletions are read behind
    /// them: a document of one partition may have been deleted in another one, and the marker of that
    /// deletion may expire while the range is still being read.
    pub(super) fn ranges_are_done(&self) -> bool {
        self.ranges_done.load(Ordering::Acquire)
    }

    /// Whether it is to be decided yet how far deletions are read behind the range of a partition that this
    /// worker reads.
    pub(super) fn is_undecided(&self, partition: &TopicPartition) -> bool {
        let notes = self.notes.lock();
        notes.get(partition).is_some_and(|note| note.undecided)
    }

    /// Decides that, and gives the offset after the last one that is read. The live group has been asked
    /// since all ranges were done: what it deletes later finds the documents in the store.
    pub(super) fn decide_deletions(&self, partition: &TopicPartition) -> Option<i64> {
        let mut notes = self.notes.lock();
        let note = notes.get_mut(partition)?;
        note.undecided = false;
        note.deletions = note
            .deletions
            .max(self.deletions_behind(partition, note.end));
        Some(note.last())
    }

    /// Whether an offset lies behind the range, where only deletions are read.
    pub(crate) fn is_behind_range(&self, partition: &TopicPartition, offset: i64) -> bool {
        let notes = self.notes.lock();
        notes.get(partition).is_some_and(|note| offset >= note.end)
    }

    /// Whether the group's last run is finished: everything that it wrote is done, and where it wrote
    /// nothing there is nothing to read.
    fn is_over(&self, states: &HashMap<TopicPartition, State>) -> bool {
        let is_empty = |partition: &TopicPartition, span: &Span| {
            span.offsets() == 0 && self.deletions_behind(partition, span.end).is_none()
        };
        let in_force = |partition: &TopicPartition| {
            let state = states.get(partition);
            state.is_some_and(|state| self.is_in_force(state))
        };
        !states.is_empty()
            && states.values().all(State::is_done)
            && states.keys().all(in_force)
            && self
                .fresh
                .iter()
                .all(|(partition, span)| in_force(partition) || is_empty(partition, span))
    }

    /// A partition that came after the start holds nothing of the job.
    fn fresh_span(&self, partition: &TopicPartition) -> Span {
        let none = Span { begin: 0, end: 0 };
        self.fresh.get(partition).copied().unwrap_or(none)
    }

    /// What a commit of this partition says, given the log that it belongs to.
    pub(crate) fn metadata(&self, partition: &TopicPartition, log: LogNote) -> Option<String> {
        let note = self.notes.lock().get(partition).cloned()?;
        Some(Note { log, ..note }.to_metadata())
    }

    /// Takes in what the group has committed; says once that everything is done.
    pub(super) fn note_states(&self, states: &HashMap<TopicPartition, State>) {
        self.learn_replaced(states);
        let partitions: HashSet<&TopicPartition> = self.fresh.keys().chain(states.keys()).collect();
        let (mut written, mut decided, mut ranges_done) = (true, true, true);
        let mut positions: Vec<RangePosition> = partitions
            .into_iter()
            .map(|partition| {
                let (note, next, is_new) = self.decide(partition, states.get(partition));
                written &= !is_new;
                decided &= !note.undecided;
                ranges_done &= next >= note.end && (!is_new || note.begin == note.end);
                RangePosition {
                    partition: partition.clone(),
                    span: Span {
                        begin: note.begin,
                        end: note.end,
                    },
                    last: note.last(),
                    next,
                }
            })
            .collect();
        positions.sort_by(|one, other| one.partition.cmp(&other.partition));
        if ranges_done {
            self.ranges_done.store(true, Ordering::Release);
        }
        if written && decided && positions.iter().all(RangePosition::is_done) {
            self.finished.store(true, Ordering::Release);
        }
        *self.positions.lock() = positions;
    }

    /// Whether everything of the job is accounted for.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// How far the job is.
    pub(crate) fn progress(&self) -> RangeProgress {
        RangeProgress {
            group: self.group.clone(),
            resumed: self.resumed,
            done_at_start: self.done_at_start,
            finished: self.is_finished(),
            positions: self.positions.lock().clone(),
        }
    }
}

#[cfg(test)]
mod tests;
