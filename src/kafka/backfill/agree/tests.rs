//! What the workers of a job agree upon.

use crate::kafka::backfill::agree::*;
use crate::kafka::log_identity::RecordIdentity;

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

/// Two workers begin a finished job again; one has written its part, the other was killed before.
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

#[test]
fn what_a_job_notes_stays_short_however_often_it_runs() {
    let ends = [10, 10, 0];
    let mut states = HashMap::new();
    let mut longest = 0;
    for night in 0..300 {
        let run = format!("{night:032}");
        let plan = plan(&run, &ends, &states);
        assert!(night == 0 || plan.was_finished());
        let partitions: Vec<_> = (0..3).map(partition).collect();
        plan.agree(&partitions, &states);
        for partition in partitions {
            let metadata = plan.metadata(&partition, LogNote::default()).unwrap();
            longest = longest.max(metadata.len());
            let note = Note::parse(&metadata).unwrap();
            let next = note.end;
            states.insert(partition, State { note, next });
        }
    }
    assert!(longest < 300, "{longest} bytes");
}
