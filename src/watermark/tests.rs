//! Watermarks under test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::document::RecordPosition;

fn partition(number: i32) -> TopicPartition {
    TopicPartition::new("news", number)
}

fn receipt(number: i32, offset: i64, generation: u64) -> Receipt {
    Receipt {
        position: RecordPosition {
            partition: partition(number),
            offset,
        },
        generation: Generation(generation),
    }
}

fn next_offsets(offsets: &[CommitOffset]) -> BTreeMap<i32, i64> {
    offsets
        .iter()
        .map(|offset| (offset.partition.partition, offset.next_offset))
        .collect()
}

fn with_delivered(offsets: &[i64]) -> Watermarks {
    let mut watermarks = Watermarks::new();
    watermarks.assign(&[partition(0)], Generation(1));
    for &offset in offsets {
        assert!(watermarks.deliver(&receipt(0, offset, 1)));
    }
    watermarks
}

#[test]
fn waits_for_the_oldest_record() {
    let mut watermarks = with_delivered(&[10, 11, 12]);
    watermarks.acknowledge(&[receipt(0, 12, 1), receipt(0, 11, 1)]);
    assert!(watermarks.committable().is_empty());
    assert_eq!(watermarks.in_flight(), 1);
    watermarks.acknowledge(&[receipt(0, 10, 1)]);
    assert_eq!(
        next_offsets(&watermarks.committable()),
        BTreeMap::from([(0, 13)])
    );
}

#[test]
fn gaps_hold_nothing_up() {
    let mut watermarks = with_delivered(&[3, 9, 40]);
    watermarks.acknowledge(&[receipt(0, 3, 1), receipt(0, 9, 1)]);
    assert_eq!(
        next_offsets(&watermarks.committable()),
        BTreeMap::from([(0, 10)])
    );
    watermarks.acknowledge(&[receipt(0, 40, 1)]);
    assert_eq!(
        next_offsets(&watermarks.committable()),
        BTreeMap::from([(0, 41)])
    );
}

#[test]
fn offers_only_what_advanced() {
    let mut watermarks = with_delivered(&[0, 1]);
    watermarks.acknowledge(&[receipt(0, 0, 1)]);
    let offered = watermarks.committable();
    watermarks.mark_committed(&offered);
    assert!(watermarks.committable().is_empty());
    watermarks.acknowledge(&[receipt(0, 1, 1)]);
    assert_eq!(
        next_offsets(&watermarks.committable()),
        BTreeMap::from([(0, 2)])
    );
}

#[test]
fn a_revoked_partition_offers_its_watermark_though_it_was_marked() {
    let mut watermarks = with_delivered(&[0, 1]);
    watermarks.acknowledge(&[receipt(0, 0, 1)]);
    let offered = watermarks.committable();
    watermarks.mark_committed(&offered);
    assert_eq!(watermarks.revoke(&[partition(0), partition(7)]), offered);
    assert_eq!(watermarks.in_flight(), 0);
}

#[test]
fn stale_and_repeated_receipts_change_nothing() {
    let mut watermarks = with_delivered(&[0, 1]);
    watermarks.acknowledge(&[
        receipt(0, 0, 0),
        receipt(0, 5, 1),
        receipt(3, 0, 1),
        receipt(0, 1, 1),
        receipt(0, 1, 1),
    ]);
    assert!(watermarks.committable().is_empty());
    assert_eq!(watermarks.in_flight(), 1);
    assert!(!watermarks.deliver(&receipt(0, 1, 1)), "delivered before");
    assert!(!watermarks.deliver(&receipt(0, 2, 0)), "stale");
    assert!(!watermarks.deliver(&receipt(4, 0, 1)), "not assigned");
}

#[test]
fn a_reassigned_partition_starts_afresh_below_its_old_offsets() {
    let mut watermarks = with_delivered(&[5, 6, 7]);
    watermarks.acknowledge(&[receipt(0, 6, 1)]);
    watermarks.lose(&[partition(0)]);
    watermarks.assign(&[partition(0)], Generation(2));
    assert!(watermarks.deliver(&receipt(0, 5, 2)));
    watermarks.acknowledge(&[receipt(0, 5, 1), receipt(0, 7, 1)]);
    assert!(
        watermarks.committable().is_empty(),
        "a zombie's receipt counts for nothing"
    );
    watermarks.acknowledge(&[receipt(0, 5, 2)]);
    assert_eq!(
        next_offsets(&watermarks.committable()),
        BTreeMap::from([(0, 6)])
    );
}

#[test]
fn says_what_holds_the_watermark() {
    let mut watermarks = with_delivered(&[5, 6, 9]);
    watermarks.acknowledge(&[receipt(0, 5, 1), receipt(0, 9, 1)]);
    let progress: Vec<_> = watermarks.progress().collect();
    assert_eq!(
        progress,
        [PartitionProgress {
            partition: partition(0),
            generation: Generation(1),
            next_offset: Some(6),
            oldest_in_flight: Some(6),
            last_delivered: Some(9),
            in_flight: 1,
        }]
    );
    assert_eq!(watermarks.in_flight_of(&[partition(0), partition(1)]), 1);
}

/// 30,000 records a second in chunks of hundreds is the bar; this asks for far more, so that
/// a quadratic step cannot hide, and leaves room for a busy machine.
#[test]
fn keeps_up_when_acknowledged_backwards() {
    const RECORDS: i64 = 100_000;
    let started = Instant::now();
    let mut watermarks = Watermarks::new();
    watermarks.assign(&[partition(0)], Generation(1));
    for offset in 0..RECORDS {
        assert!(watermarks.deliver(&receipt(0, offset * 3, 1)));
    }
    let receipts: Vec<_> = (0..RECORDS).rev().map(|o| receipt(0, o * 3, 1)).collect();
    watermarks.acknowledge(&receipts);
    assert_eq!(watermarks.in_flight(), 0);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "took {:?}",
        started.elapsed()
    );
}

/// What may happen to a worker, in any order.
#[derive(Debug, Clone)]
enum Step {
    Assign(i32),
    Deliver(i32),
    /// Acknowledges the nth record ever delivered, however old its assignment.
    Acknowledge(prop::sample::Index),
    Commit,
    Revoke(i32),
    Lose(i32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let partitions = 0..3i32;
    let step = prop_oneof![
        2 => partitions.clone().prop_map(Step::Assign),
        12 => partitions.clone().prop_map(Step::Deliver),
        12 => any::<prop::sample::Index>().prop_map(Step::Acknowledge),
        3 => Just(Step::Commit),
        1 => partitions.clone().prop_map(Step::Revoke),
        1 => partitions.prop_map(Step::Lose),
    ];
    prop::collection::vec(step, 1..400)
}

/// The next offset that the log still has: some are gone for good, as after compaction.
fn existing(offset: i64) -> i64 {
    offset + (offset..).take_while(|o| o % 7 == 3 || o % 7 == 4).count() as i64
}

/// The same rules, told naively: sets, and the whole partition searched at each question.
#[derive(Default)]
struct Model {
    held: BTreeMap<i32, (u64, BTreeSet<i64>, BTreeSet<i64>)>,
}

impl Model {
    fn next_offset(&self, partition: i32) -> Option<i64> {
        let (_, delivered, done) = self.held.get(&partition)?;
        delivered
            .iter()
            .take_while(|offset| done.contains(offset))
            .last()
            .map(|offset| offset + 1)
    }

    fn in_flight(&self) -> usize {
        self.held
            .values()
            .map(|(_, delivered, done)| delivered.len() - done.len())
            .sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Never ahead and never stuck: after every step the watermarks equal the naive model's,
    /// what a broker would hold never passes a record that is not durable, and once all is
    /// acknowledged everything is committable.
    #[test]
    fn equals_the_naive_model(steps in steps()) {
        let mut watermarks = Watermarks::new();
        let mut model = Model::default();
        let mut committed = BTreeMap::<i32, i64>::new();
        let mut delivered = Vec::<Receipt>::new();
        let mut durable = BTreeSet::<(i32, i64)>::new();
        let mut generation = 0;

        for step in steps {
            match step {
                Step::Assign(number) => {
                    generation += 1;
                    watermarks.assign(&[partition(number)], Generation(generation));
                    model.held.insert(number, (generation, BTreeSet::new(), BTreeSet::new()));
                }
                Step::Deliver(number) => {
                    let start = existing(committed.get(&number).copied().unwrap_or(0));
                    let Some((held, records, _)) = model.held.get_mut(&number) else {
                        prop_assert!(!watermarks.deliver(&receipt(number, start, generation)));
                        continue;
                    };
                    // A new owner begins at what is committed, as a broker would have it.
                    let offset = records.last().map_or(start, |last| existing(last + 1));
                    let receipt = receipt(number, offset, *held);
                    prop_assert!(watermarks.deliver(&receipt));
                    records.insert(offset);
                    delivered.push(receipt);
                }
                Step::Acknowledge(index) => {
                    if delivered.is_empty() {
                        continue;
                    }
                    let receipt = index.get(&delivered).clone();
                    let (number, offset) =
                        (receipt.position.partition.partition, receipt.position.offset);
                    durable.insert((number, offset));
                    watermarks.acknowledge([&receipt]);
                    if let Some((held, _, done)) = model.held.get_mut(&number)
                        && *held == receipt.generation.0
                    {
                        done.insert(offset);
                    }
                }
                Step::Commit => {
                    let offsets = watermarks.committable();
                    watermarks.mark_committed(&offsets);
                    committed.extend(next_offsets(&offsets));
                }
                Step::Revoke(number) => {
                    let expected = model.next_offset(number);
                    let offsets = next_offsets(&watermarks.revoke(&[partition(number)]));
                    prop_assert_eq!(offsets.get(&number).copied(), expected);
                    committed.extend(offsets);
                    model.held.remove(&number);
                }
                Step::Lose(number) => {
                    watermarks.lose(&[partition(number)]);
                    model.held.remove(&number);
                }
            }
            prop_assert_eq!(watermarks.in_flight(), model.in_flight());
            for progress in watermarks.progress() {
                prop_assert_eq!(
                    progress.next_offset,
                    model.next_offset(progress.partition.partition)
                );
            }
            for receipt in &delivered {
                let place = (receipt.position.partition.partition, receipt.position.offset);
                let below = committed.get(&place.0).is_some_and(|next| place.1 < *next);
                prop_assert!(!below || durable.contains(&place), "{:?} was passed", place);
            }
        }

        watermarks.acknowledge(&delivered);
        prop_assert_eq!(watermarks.in_flight(), 0);
        let last: BTreeMap<i32, i64> = model
            .held
            .iter()
            .filter_map(|(number, (_, records, _))| Some((*number, records.last()? + 1)))
            .collect();
        let offered = next_offsets(&watermarks.committable());
        for (number, next) in last {
            let reached = offered.get(&number) == Some(&next)
                || committed.get(&number) == Some(&next);
            prop_assert!(reached, "partition {} is stuck", number);
        }
    }
}
