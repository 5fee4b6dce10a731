//! The batch planner under test.

use proptest::prelude::*;

use super::*;
use crate::keys::Declared;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    number: usize,
    tokens: usize,
    key: u64,
}

impl BatchItem for Item {
    fn tokens(&self) -> usize {
        self.tokens
    }

    fn key_hash(&self) -> u64 {
        self.key
    }
}

fn item(number: usize, tokens: usize) -> Item {
    let key = number as u64;
    Item {
        number,
        tokens,
        key,
    }
}

fn settings(token_budget: usize, max_rows: usize, window_documents: usize) -> BatchSettings {
    BatchSettings {
        token_budget,
        max_rows,
        window_documents,
        linger_ms: 20,
        max_padding: 0.1,
    }
}

fn numbers(batch: Option<Batch<Item>>) -> Vec<usize> {
    let items = batch.map(|batch| batch.items).unwrap_or_default();
    items.iter().map(|item| item.number).collect()
}

#[test]
fn waits_for_company_no_longer_than_the_linger_bound() {
    let start = Instant::now();
    let later = |milliseconds| start + Duration::from_millis(milliseconds);
    let mut planner = BatchPlanner::new(&settings(100, 8, 8));
    assert_eq!(planner.deadline(), None);
    planner.push(item(0, 10), start).unwrap();
    planner.push(item(1, 10), later(5)).unwrap();
    assert_eq!(planner.deadline(), Some(later(20)));
    assert_eq!(planner.next_batch(later(19), false), None);
    assert_eq!(numbers(planner.next_batch(later(20), false)), [0, 1]);
    assert!(planner.is_empty());
    planner.push(item(2, 10), later(30)).unwrap();
    assert_eq!(numbers(planner.next_batch(later(30), true)), [2], "drained");
}

#[test]
fn a_full_window_is_due_at_once_and_takes_no_more() {
    let now = Instant::now();
    let mut planner = BatchPlanner::new(&settings(100, 2, 3));
    for number in 0..3 {
        assert!(!planner.is_full());
        planner.push(item(number, 10), now).unwrap();
    }
    assert!(planner.is_full());
    assert_eq!(planner.push(item(3, 10), now), Err(item(3, 10)));
    assert_eq!(numbers(planner.next_batch(now, false)).len(), 2);
    assert!(planner.push(item(3, 10), now).is_ok());
}

#[test]
fn takes_the_oldest_with_its_neighbours_in_length() {
    let now = Instant::now();
    let mut planner = BatchPlanner::new(&settings(90, 8, 6));
    for (number, tokens) in [30, 500, 9, 29, 10, 31].into_iter().enumerate() {
        planner.push(item(number, tokens), now).unwrap();
    }
    assert_eq!(
        numbers(planner.next_batch(now, true)),
        [0, 3],
        "31 would pad to 93"
    );
    assert_eq!(
        numbers(planner.next_batch(now, true)),
        [1],
        "longer than the budget"
    );
    assert_eq!(numbers(planner.next_batch(now, true)), [2, 4]);
    assert_eq!(numbers(planner.next_batch(now, true)), [5]);
    assert_eq!(planner.next_batch(now, true), None);
}

#[test]
fn a_newer_record_does_not_overtake_an_older_one_of_its_key() {
    let now = Instant::now();
    let mut planner = BatchPlanner::new(&settings(100, 2, 8));
    let record = |number, tokens, key| Item {
        number,
        tokens,
        key,
    };
    // The oldest is long; both records of key 7 are short, the older one less alike.
    planner.push(record(0, 50, 1), now).unwrap();
    planner.push(record(1, 5, 7), now).unwrap();
    planner.push(record(2, 49, 7), now).unwrap();
    assert_eq!(numbers(planner.next_batch(now, true)), [0]);
    assert_eq!(numbers(planner.next_batch(now, true)), [1]);
    assert_eq!(numbers(planner.next_batch(now, true)), [2]);
    for number in 0..2 {
        planner.push(record(number, 10, 7), now).unwrap();
    }
    assert_eq!(
        numbers(planner.next_batch(now, true)),
        [0, 1],
        "in one batch, in order"
    );
}

/// A load of titles and articles, each half of it, from a fixed seed.
fn mixed_lengths(documents: usize) -> Vec<usize> {
    let mut state = 7u64;
    let mut below = |bound: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((state >> 33) % bound) as usize
    };
    let mut length = || match below(2) {
        0 => 28 + below(25),
        _ => 100 + below(413),
    };
    (0..documents).map(|_| length()).collect()
}

/// Padding efficiency of a mixed load, and how full its batches are.
fn mixed_load(settings: &BatchSettings) -> (f64, f64) {
    let now = Instant::now();
    let mut planner = BatchPlanner::new(settings);
    let (mut real, mut padded, mut batches) = (0, 0, 0);
    let mut count = |batch: Option<Batch<Item>>| {
        batch.is_some_and(|batch| {
            real += batch.real_tokens;
            padded += batch.padded_tokens();
            batches += 1;
            true
        })
    };
    for (number, tokens) in mixed_lengths(10_000).into_iter().enumerate() {
        if planner.is_full() {
            count(planner.next_batch(now, false));
        }
        planner.push(item(number, tokens), now).unwrap();
    }
    while count(planner.next_batch(now, true)) {}
    let fill = padded as f64 / f64::from(batches) / settings.token_budget as f64;
    (real as f64 / padded as f64, fill)
}

#[test]
fn a_mixed_load_is_padded_by_less_than_a_twentieth() {
    for on_gpu in [false, true] {
        let mut settings = BatchSettings::default();
        settings.resolve(on_gpu);
        let (efficiency, fill) = mixed_load(&settings);
        println!("gpu {on_gpu}: padding efficiency {efficiency:.4}, fill {fill:.3}");
        assert!(efficiency >= 0.95, "{efficiency}");
        // On a processor an article goes alone, and a batch need not be full to be fast.
        let least = if on_gpu { 0.7 } else { 0.5 };
        assert!(fill >= least, "batches are filled to {fill} of the budget");
    }
}

/// What happens to a planner: a document arrives, time passes, a batch is asked for.
#[derive(Debug, Clone)]
enum Event {
    Push { tokens: usize, key: u64 },
    Pass { milliseconds: u64 },
    Take { draining: bool },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (1usize..200, 0u64..12).prop_map(|(tokens, key)| Event::Push { tokens, key }),
        1 => (0u64..15).prop_map(|milliseconds| Event::Pass { milliseconds }),
        1 => prop::bool::weighted(0.1).prop_map(|draining| Event::Take { draining }),
    ];
    prop::collection::vec(event, 0..300)
}

/// Drives one planner through events and checks every batch that it gives.
struct Check {
    planner: BatchPlanner<Item>,
    settings: BatchSettings,
    now: Instant,
    pushed: Vec<(Item, Instant)>,
    given: Vec<usize>,
}

impl Check {
    fn new(settings: BatchSettings) -> Self {
        Self {
            planner: BatchPlanner::new(&settings),
            settings,
            now: Instant::now(),
            pushed: Vec::new(),
            given: Vec::new(),
        }
    }

    fn take(&mut self, draining: bool) -> Result<bool, TestCaseError> {
        let Some(batch) = self.planner.next_batch(self.now, draining) else {
            return Ok(false);
        };
        let rows = batch.items.len();
        let tokens = batch.items.iter().map(|item| item.tokens);
        prop_assert!(rows >= 1 && rows <= self.settings.max_rows);
        prop_assert_eq!(batch.longest_tokens, tokens.clone().max().unwrap());
        prop_assert_eq!(batch.real_tokens, tokens.sum::<usize>());
        prop_assert!(
            rows == 1 || batch.padded_tokens() <= self.settings.token_budget,
            "{} rows of {} tokens",
            rows,
            batch.longest_tokens
        );
        let oldest = (0..self.pushed.len()).find(|number| !self.given.contains(number));
        self.given
            .extend(batch.items.iter().map(|item| item.number));
        prop_assert!(
            self.given.contains(&oldest.unwrap()),
            "the oldest was passed over"
        );
        Ok(true)
    }

    fn run(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match *event {
            Event::Push { tokens, key } => {
                if self.planner.is_full() {
                    prop_assert!(self.take(false)?, "a full window is due");
                }
                let number = self.pushed.len();
                let item = Item {
                    number,
                    tokens,
                    key,
                };
                self.pushed.push((item.clone(), self.now));
                prop_assert!(self.planner.push(item, self.now).is_ok());
            }
            Event::Pass { milliseconds } => self.now += Duration::from_millis(milliseconds),
            Event::Take { draining } => {
                while self.take(draining)? {}
                let late = self.pushed.iter().find(|(item, arrived)| {
                    !self.given.contains(&item.number)
                        && *arrived + self.settings.linger() <= self.now
                });
                prop_assert!(late.is_none(), "held beyond the linger bound: {:?}", late);
                prop_assert!(!draining || self.planner.is_empty());
            }
        }
        prop_assert!(self.planner.len() <= self.settings.window_documents);
        prop_assert_eq!(self.planner.len() + self.given.len(), self.pushed.len());
        Ok(())
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_and_no_bound_is_exceeded(
        events in events(),
        token_budget in 1usize..600,
        max_rows in 1usize..12,
        window in 1usize..40,
        max_padding in 0.0f64..=1.0,
    ) {
        let settings = BatchSettings { max_padding, ..settings(token_budget, max_rows, window) };
        let mut check = Check::new(settings);
        for event in events {
            check.run(&event)?;
        }
        check.run(&Event::Take { draining: true })?;
        let mut all = check.given.clone();
        all.sort_unstable();
        prop_assert_eq!(all, (0..check.pushed.len()).collect::<Vec<_>>());
        for key in 0..12 {
            let of_key = |number: &&usize| check.pushed[**number].0.key == key;
            let order: Vec<_> = check.given.iter().filter(of_key).collect();
            prop_assert!(order.is_sorted(), "key {} came as {:?}", key, order);
        }
    }
}

#[test]
fn a_budget_is_chosen_by_the_device_where_none_is_configured() {
    let mut settings = BatchSettings::default();
    settings.resolve(false);
    assert_eq!(settings.token_budget, CPU_TOKEN_BUDGET);
    let mut settings = BatchSettings::default();
    settings.resolve(true);
    assert_eq!(settings.token_budget, GPU_TOKEN_BUDGET);
    settings.resolve(false);
    assert_eq!(settings.token_budget, GPU_TOKEN_BUDGET);
}

#[test]
fn bounds_of_the_settings() {
    assert!(BatchSettings::default().out_of_range().is_empty());
    let wrong = BatchSettings {
        token_budget: usize::MAX,
        max_rows: 0,
        window_documents: 0,
        linger_ms: 3_600_000,
        max_padding: f64::NAN,
    };
    assert_eq!(wrong.out_of_range().len(), 5);
}
