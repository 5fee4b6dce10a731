//! Tests of the poll thread's desk.

use crate::document::RecordPosition;
use crate::kafka::consumer::assignment::*;

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

/// Lets a partition begin, everything below `next` being done.
fn begin(desk: &mut Desk, number: i32, next: i64, end: Option<i64>) {
    let generation = desk.get_mut("news", number).unwrap().generation;
    let begin = Begin {
        partition: partition(number),
        generation,
        at: next,
        next: Some(next),
        end,
        log: LogNote::default(),
    };
    assert!(desk.begin(&begin));
    assert!(!desk.begin(&begin), "it has begun already");
}

fn identity(offset: i64) -> RecordIdentity {
    RecordIdentity::of(offset, None, None, Some(b"value"))
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
    let generation = desk.assign(&[partition(0), partition(1)]);
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
    let first = desk.assign(&[partition(0), partition(1)]);
    desk.begin_leaving(&[partition(1)]);
    let offered = [
        offset(0, 5, first),
        offset(1, 5, first),
        offset(2, 5, first),
    ];
    assert_eq!(desk.still_held(&offered, false), offered[..1]);
    assert_eq!(desk.still_held(&offered, true), offered[..2]);
    desk.forget(&[partition(0)]);
    desk.assign(&[partition(0)]);
    assert_eq!(desk.still_held(&offered, false), []);
}

#[test]
fn the_furthest_offset_waits_and_never_follows_a_later_one() {
    let mut desk = desk();
    let generation = desk.assign(&[partition(0)]);
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
    let generation = desk.assign(&[partition(0), partition(1)]);
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
    let mut desk = desk();
    let generation = desk.assign(&[partition(0), partition(1), partition(2)]);
    for (number, next) in [(0, 3), (1, 3), (2, 10)] {
        begin(&mut desk, number, next, Some(10));
    }
    let at = |number, next| offset(number, next, generation);
    // Partition 2 was done before: the others are to see that.
    assert_eq!(desk.take_pending_commits(false), [at(2, 10)]);
    assert_eq!(desk.take_newly_ended(), [partition(2)]);

    // Nothing was delivered of partition 0: its end can be committed at once.
    desk.reach_end(&partition(0), generation, 3);
    assert_eq!(desk.take_pending_commits(false), [at(0, 10)]);
    // Partition 1 has delivered up to 7 and committed up to 5.
    let held = desk.get_mut("news", 1).unwrap();
    (held.next, held.delivered_next) = (Some(7), Some(7));
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
    let mut desk = desk();
    let first = desk.assign(&[partition(0)]);
    begin(&mut desk, 0, 3, Some(10));
    desk.forget(&[partition(0)]);
    desk.assign(&[partition(0)]);
    begin(&mut desk, 0, 3, Some(10));
    desk.reach_end(&partition(0), first, 3);
    assert_eq!(desk.take_pending_commits(false), []);
    let second = desk.get_mut("news", 0).unwrap().generation;
    desk.begin_leaving(&[partition(0)]);
    desk.reach_end(&partition(0), second, 3);
    assert_eq!(desk.take_pending_commits(false), []);
}

#[test]
fn a_partition_is_checked_before_it_begins_and_after_an_offset_reset() {
    let mut desk = desk();
    let generation = desk.assign(&[partition(0), partition(1)]);
    let wanted = [(partition(0), generation), (partition(1), generation)];
    assert_eq!(desk.check_again(), [], "they are being checked already");
    let asked = desk.to_check(&wanted);
    assert!(
        asked
            .iter()
            .all(|asked| asked.is_new && asked.next.is_none())
    );
    begin(&mut desk, 0, 3, None);
    assert_eq!(desk.to_check(&wanted).len(), 1);

    let held = desk.get_mut("news", 0).unwrap();
    held.next = Some(8);
    held.delivered.push(identity(7));
    assert_eq!(desk.check_again(), [(partition(0), generation)]);
    let asked = desk.to_check(&wanted);
    let asked = asked.iter().find(|asked| !asked.is_new).unwrap();
    assert_eq!((asked.next, asked.log.last), (Some(8), Some(identity(7))));
    desk.begin_leaving(&[partition(0)]);
    assert_eq!(desk.to_check(&wanted).len(), 1);
}

#[test]
fn a_commit_names_the_log_and_a_partition_that_comes_back_is_known() {
    let mut desk = desk();
    let generation = desk.assign(&[partition(0)]);
    begin(&mut desk, 0, 3, None);
    for at in 3..6 {
        desk.get_mut("news", 0)
            .unwrap()
            .delivered
            .push(identity(at));
    }
    assert_eq!(desk.log_note(&offset(0, 3, generation)).last, None);
    assert_eq!(
        desk.log_note(&offset(0, 5, generation)).last,
        Some(identity(4))
    );
    assert_eq!(desk.unverified(), [], "nothing is committed");
    desk.commit_succeeded(&[offset(0, 5, generation)]);
    let unverified = desk.unverified();
    assert_eq!(unverified[0].2.last, Some(identity(4)));
    desk.verify(&partition(0), generation, identity(4));
    assert_eq!(desk.unverified(), []);

    desk.forget(&[partition(0)]);
    let second = desk.assign(&[partition(0)]);
    assert_eq!(desk.log_note(&offset(0, 5, generation)), LogNote::default());
    let asked = desk.to_check(&[(partition(0), second)]);
    assert_eq!(asked[0].log.last, Some(identity(5)));
}

#[test]
fn what_is_skipped_is_committed_after_what_was_delivered() {
    let mut desk = desk();
    let generation = desk.assign(&[partition(0)]);
    begin(&mut desk, 0, 10, Some(20));
    let next = |desk: &mut Desk| {
        let taken = desk.take_pending_commits(false);
        taken.first().map(|offset| offset.next_offset)
    };
    // Offset 10 is delivered, 11 is not: nothing is committed before 10 is durable.
    let held = desk.get_mut("news", 0).unwrap();
    (held.next, held.delivered_next) = (Some(11), Some(11));
    desk.skip(&partition(0), 11);
    assert_eq!(next(&mut desk), None);
    desk.commit_succeeded(&[offset(0, 11, generation)]);
    assert_eq!(next(&mut desk), Some(12));
    desk.commit_succeeded(&[offset(0, 12, generation)]);
    // The last one before the end takes everything with it.
    desk.skip(&partition(0), 17);
    assert_eq!(next(&mut desk), Some(18));
    desk.skip(&partition(0), 19);
    assert_eq!(next(&mut desk), Some(20));
    desk.commit_succeeded(&[offset(0, 20, generation)]);
    assert_eq!(next(&mut desk), None);
}

#[test]
fn a_check_makes_nothing_durable_that_is_in_flight() {
    let mut desk = desk();
    let generation = desk.assign(&[partition(0)]);
    begin(&mut desk, 0, 5, None);
    deliver_to(&mut desk, 8);
    desk.check_again();
    begin(&mut desk, 0, 8, None);
    let position = |desk: &Desk| {
        let positions = desk.positions();
        (positions[0].position, positions[0].is_settled)
    };
    assert_eq!(position(&desk), (Some(5), false));
    assert!(!desk.pass_gap(&partition(0), generation, 8, 9));
    desk.commit_succeeded(&[offset(0, 8, generation)]);
    assert_eq!(position(&desk), (Some(8), true));
}

/// Says that everything below `next` was delivered.
fn deliver_to(desk: &mut Desk, next: i64) {
    let held = desk.get_mut("news", 0).unwrap();
    (held.next, held.delivered_next) = (Some(next), Some(next));
}

/// Lets partition 0 go on at `at`, what lies between `next` and that being gone.
fn accept_gap(desk: &mut Desk, generation: Generation, next: i64, at: i64) {
    let begin = Begin {
        partition: partition(0),
        generation,
        at,
        next: Some(next),
        end: None,
        log: LogNote::default(),
    };
    assert!(desk.begin(&begin));
}

#[test]
fn a_gap_is_committed_once_everything_before_it_is() {
    let mut desk = desk();
    let generation = desk.assign(&[partition(0)]);
    let position = |desk: &Desk| {
        let positions = desk.positions();
        (positions[0].position, positions[0].is_settled)
    };
    // At the start nothing is in flight: the gap that was accepted once is not to be met again.
    accept_gap(&mut desk, generation, 5, 10);
    assert_eq!(position(&desk), (Some(5), false));
    let at = |next| offset(0, next, generation);
    assert_eq!(desk.take_pending_commits(false), [at(10)]);
    desk.commit_succeeded(&[at(10)]);
    assert_eq!(position(&desk), (Some(10), true));

    deliver_to(&mut desk, 13);
    desk.check_again();
    accept_gap(&mut desk, generation, 13, 20);
    assert_eq!(position(&desk), (Some(10), false), "three are in flight");
    assert!(!desk.pass_gap(&partition(0), generation, 20, 25));
    desk.commit_succeeded(&[at(12)]);
    assert_eq!(desk.take_pending_commits(false), []);
    desk.commit_succeeded(&[at(13)]);
    assert_eq!(desk.take_pending_commits(false), [at(20)]);
    // Another check goes on behind the gap.
    desk.check_again();
    let asked = desk.to_check(&[(partition(0), generation)]);
    assert_eq!(asked[0].next, Some(20));
}

#[test]
fn a_partition_without_commit_begins_at_what_is_there() {
    let mut desk = desk();
    let generation = desk.assign(&[partition(0)]);
    let at = |at| Begin {
        partition: partition(0),
        generation,
        at,
        next: None,
        end: None,
        log: LogNote::default(),
    };
    for oldest in [5, 9] {
        assert!(desk.begin(&at(oldest)));
        let found = &desk.positions()[0];
        assert_eq!((found.position, found.is_settled), (Some(oldest), true));
        assert_eq!(desk.take_pending_commits(false), []);
        desk.check_again();
    }
}
