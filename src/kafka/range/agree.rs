//! What the workers of a job agree upon, by way of the metadata of their group's commits: whoever
//! holds a partition first writes its span there, everybody after reads it. Pure but for the locks.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::super::log_identity::LogNote;
use super::{RangePosition, RangeProgress, Span};
use crate::document::TopicPartition;

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
            let runs = states.values().map(|state| state.note.run.clone());
            plan.finished_runs.get_mut().extend(runs);
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
        let mut replaces: Vec<String> = self.finished_runs.lock().iter().cloned().collect();
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
mod tests {
    use super::super::super::log_identity::RecordIdentity;
    use super::*;

    fn partition(number: i32) -> TopicPartition {
        TopicPartition::new("news", number)
    }

    fn fresh(ends: &[i64]) -> HashMap<TopicPartition, Span> {
        (0..)
            .zip(ends)
            .map(|(number, end)| {
                (
                    partition(number),
                    Span {
                        begin: 0,
                        end: *end,
                    },
                )
            })
            .collect()
    }

    fn state(run: &str, end: i64, next: i64) -> State {
        State {
            note: Note {
                run: run.to_owned(),
                begin: 0,
                end,
                log: LogNote::default(),
                deletions: None,
                undecided: false,
                replaces: Vec::new(),
            },
            next,
        }
    }

    fn plan(run: &str, ends: &[i64], states: &HashMap<TopicPartition, State>) -> JobPlan {
        JobPlan::new("g".to_owned(), run.to_owned(), fresh(ends), None, states)
    }

    /// The same where the live group is at `live` in partition 0.
    fn plan_beside(
        live: i64,
        run: &str,
        ends: &[i64],
        states: &HashMap<TopicPartition, State>,
    ) -> JobPlan {
        let live = Some(HashMap::from([(partition(0), live)]));
        JobPlan::new("g".to_owned(), run.to_owned(), fresh(ends), live, states)
    }

    #[test]
    fn the_first_worker_decides_and_the_next_one_follows() {
        let none = HashMap::new();
        let first = plan("a", &[10, 10], &none);
        let agreed = first.agree(&[partition(0)], &none);
        assert_eq!(
            (agreed[0].next, agreed[0].end, agreed[0].is_new),
            (0, 10, true)
        );
        assert_eq!(
            Note::parse(&first.metadata(&partition(0), LogNote::default()).unwrap()).unwrap(),
            state("a", 10, 0).note
        );

        // The topic has grown; the end stays where it was.
        let states = HashMap::from([(partition(0), state("a", 10, 4))]);
        let second = plan("b", &[50, 50], &states);
        assert!(second.progress().resumed);
        let agreed = second.agree(&[partition(0), partition(1)], &states);
        assert_eq!(
            (agreed[0].next, agreed[0].end, agreed[0].is_new),
            (4, 10, false)
        );
        assert_eq!(
            (agreed[1].next, agreed[1].end, agreed[1].is_new),
            (0, 50, true)
        );
        assert_eq!(second.progress().done_at_start, 4);
        assert_eq!(second.progress().total(), 60);
    }

    #[test]
    fn a_finished_job_begins_anew_and_what_others_began_is_not_begun_again() {
        let states = HashMap::from([
            (partition(0), state("a", 10, 10)),
            (partition(1), state("a", 10, 12)),
        ]);
        let plan = plan("b", &[20, 20], &states);
        assert!(plan.was_finished() && !plan.is_finished() && !plan.progress().resumed);
        assert_eq!(plan.progress().done_at_start, 0);
        // Another worker of the new run was faster with partition 1.
        let now = HashMap::from([
            (partition(0), state("a", 10, 10)),
            (partition(1), state("c", 21, 21)),
        ]);
        let agreed = plan.agree(&[partition(0), partition(1)], &now);
        assert_eq!(
            (agreed[0].next, agreed[0].end, agreed[0].is_new),
            (0, 20, true)
        );
        assert_eq!(
            (agreed[1].next, agreed[1].end, agreed[1].is_new),
            (21, 21, false)
        );
        plan.note_states(&now);
        assert!(
            !plan.is_finished(),
            "partition 0 is still as the last run left it"
        );
        plan.note_states(&HashMap::from([
            (partition(0), state("b", 20, 20)),
            (partition(1), state("c", 21, 21)),
        ]));
        assert!(plan.is_finished());
    }

    #[test]
    fn a_job_whose_worker_died_early_is_not_finished() {
        // Partition 1 has records and nobody ever held it.
        let states = HashMap::from([(partition(0), state("a", 10, 10))]);
        let late = plan("b", &[20, 20], &states);
        assert!(!late.was_finished() && late.progress().resumed);
        // Without records in it there is nothing left to do.
        assert!(plan("b", &[20, 0], &states).was_finished());
    }

    #[test]
    fn an_empty_range_is_finished_once_it_is_written_down() {
        let none = HashMap::new();
        let plan = plan("a", &[0], &none);
        assert!(!plan.is_finished());
        plan.note_states(&HashMap::from([(partition(0), state("a", 0, 0))]));
        assert!(plan.is_finished());
    }

    #[test]
    fn a_note_names_the_log_and_older_notes_stay_readable() {
        let older = r#"{"run":"a","begin":0,"end":10}"#;
        let note = Note::parse(older).unwrap();
        assert_eq!(note, state("a", 10, 0).note);
        assert_eq!(note.to_metadata(), older);

        let states = HashMap::from([(partition(0), state("a", 10, 4))]);
        let plan = plan("b", &[10], &states);
        plan.agree(&[partition(0)], &states);
        let log = LogNote {
            last: Some(RecordIdentity::of(3, Some(7), Some(b"key"), Some(b"value"))),
            verified: None,
        };
        let metadata = plan.metadata(&partition(0), log).unwrap();
        let read = Note::parse(&metadata).unwrap();
        assert_eq!((read.run.as_str(), read.end, read.log), ("a", 10, log));
        assert_eq!(LogNote::parse(&metadata), log);
        // A log that cannot be understood takes nothing from the rest.
        let odd = Note::parse(r#"{"run":"a","begin":0,"end":10,"last":7}"#);
        assert_eq!(odd, Some(note));
    }

    #[test]
    fn commits_of_others_say_nothing() {
        for metadata in ["", "x", "{}", r#"{"run":"a","begin":5,"end":4}"#] {
            assert_eq!(Note::parse(metadata), None, "{metadata}");
        }
    }

    #[test]
    fn deletions_are_read_up_to_the_live_group_once_all_ranges_are_done() {
        let none = HashMap::new();
        let first = plan_beside(40, "a", &[10, 10], &none);
        let agreed = first.agree(&[partition(0)], &none);
        assert_eq!((agreed[0].next, agreed[0].end), (0, 10));
        assert!(first.is_undecided(&partition(0)));
        let metadata = first.metadata(&partition(0), LogNote::default()).unwrap();
        let note = Note::parse(&metadata).unwrap();
        assert_eq!((note.end, note.deletions, note.undecided), (10, None, true));
        let states = |notes: [&Note; 2], next: [i64; 2]| -> HashMap<TopicPartition, State> {
            let of = |at: usize| State {
                note: notes[at].clone(),
                next: next[at],
            };
            HashMap::from([(partition(0), of(0)), (partition(1), of(1))])
        };
        // The other partition is still being read.
        first.note_states(&states([&note, &note], [10, 9]));
        assert!(!first.ranges_are_done());
        first.note_states(&states([&note, &note], [10, 10]));
        assert!(first.ranges_are_done() && !first.is_finished());
        first.note_live(HashMap::from([(partition(0), 90)]));
        assert_eq!(first.decide_deletions(&partition(0)), Some(90));
        assert!(!first.is_undecided(&partition(0)));
        assert!(!first.is_behind_range(&partition(0), 9));
        assert!(first.is_behind_range(&partition(0), 10));
        let metadata = first.metadata(&partition(0), LogNote::default()).unwrap();
        let decided = Note::parse(&metadata).unwrap();
        assert_eq!((decided.deletions, decided.undecided), (Some(90), false));
        // Once it is written it stays.
        let now = states([&decided, &note], [25, 10]);
        let late = plan_beside(95, "b", &[10, 10], &now);
        let agreed = late.agree(&[partition(0), partition(1)], &now);
        assert_eq!((agreed[0].end, agreed[1].end), (90, 10));
        assert!(!late.is_undecided(&partition(0)) && late.is_undecided(&partition(1)));
        let none_behind = Note {
            undecided: false,
            ..note.clone()
        };
        late.note_states(&states([&decided, &none_behind], [89, 10]));
        assert!(!late.is_finished());
        late.note_states(&states([&decided, &none_behind], [90, 10]));
        assert!(late.is_finished());
        // Where they are not wanted they are left out, also of a job that had them.
        let without = plan("b", &[10, 10], &now);
        assert!(
            without
                .progress()
                .positions
                .iter()
                .all(RangePosition::is_done)
        );
    }

    /// Two workers begin a finished job anew; one has written its part, the other was killed before.
    #[test]
    fn what_a_finished_run_wrote_says_nothing_to_the_one_that_replaces_it() {
        let finished = HashMap::from([
            (partition(0), state("a", 10, 10)),
            (partition(1), state("a", 10, 10)),
        ]);
        let first = plan("b", &[10, 10], &finished);
        assert!(first.was_finished());
        first.agree(&[partition(0)], &finished);
        let metadata = first.metadata(&partition(0), LogNote::default()).unwrap();
        let note = Note::parse(&metadata).unwrap();
        assert_eq!(note.replaces, ["a"]);
        let half = HashMap::from([
            (partition(0), State { note, next: 10 }),
            (partition(1), state("a", 10, 10)),
        ]);
        let next = plan("c", &[10, 10], &half);
        assert!(!next.was_finished() && !next.is_finished() && next.progress().resumed);
        let agreed = next.agree(&[partition(0), partition(1)], &half);
        assert_eq!((agreed[0].next, agreed[0].is_new), (10, false));
        assert_eq!((agreed[1].next, agreed[1].is_new), (0, true));
    }

    #[test]
    fn a_live_group_within_the_range_adds_nothing() {
        let none = HashMap::new();
        let agreed = plan_beside(10, "a", &[10], &none).agree(&[partition(0)], &none);
        assert_eq!(agreed[0].end, 10);
        // An empty range has deletions behind it, and is not over before they are read.
        let states = HashMap::from([(partition(1), state("a", 5, 5))]);
        assert!(!plan_beside(10, "b", &[0, 5], &states).was_finished());
        assert!(plan("b", &[0, 5], &states).was_finished());
    }

    #[test]
    fn notes_of_an_earlier_version_are_read() {
        let old = Note::parse(r#"{"run":"a","begin":2,"end":7}"#).unwrap();
        assert_eq!((old.begin, old.last(), old.deletions), (2, 7, None));
        assert_eq!(old.to_metadata(), r#"{"run":"a","begin":2,"end":7}"#);
    }
}
