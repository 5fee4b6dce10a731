//! Which documents go through the model together: a token budget, a window sorted by length, a
//! bound on waiting. Pure: items say their length and key, the time is passed in; must not know
//! what an item holds.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::bounds::{Violation, check_range};

/// Token budget on a processor: a batch whose activations stay in its caches. Measured with 4 layers of
/// 256 on one core: 640 tokens 1.26 ms for a title, 2560 tokens 1.55 ms.
const CPU_TOKEN_BUDGET: usize = 768;
/// Token budget on a GPU, which needs many rows to be busy.
const GPU_TOKEN_BUDGET: usize = 16_384;
/// Largest token budget of a batch.
const MAX_TOKEN_BUDGET: usize = 1 << 22;
/// Most rows of a batch.
const MAX_ROWS: usize = 1 << 16;
/// Most documents of the window.
const MAX_WINDOW_DOCUMENTS: usize = 1 << 20;
/// Longest wait for company, in milliseconds.
const MAX_LINGER_MS: u64 = 60_000;

/// The section `batch`; every key is described in `config/default.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchSettings {
    /// Most tokens of a batch, padding counted; 0 until [`BatchSettings::resolve`] has chosen.
    pub token_budget: usize,
    /// Most documents of a batch.
    pub max_rows: usize,
    /// Documents that are looked at to find some of equal length.
    pub window_documents: usize,
    /// Longest time a document waits for company, in milliseconds.
    pub linger_ms: u64,
    /// Largest share of padding for the sake of a fuller batch.
    pub max_padding: f64,
}

impl Default for BatchSettings {
    fn default() -> Self {
        Self {
            token_budget: 0,
            max_rows: 1024,
            window_documents: 2048,
            linger_ms: 20,
            max_padding: 0.1,
        }
    }
}

impl BatchSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        check_range(
            &mut violations,
            "token_budget",
            self.token_budget,
            0,
            MAX_TOKEN_BUDGET,
        );
        check_range(&mut violations, "max_rows", self.max_rows, 1, MAX_ROWS);
        let window = self.window_documents;
        check_range(
            &mut violations,
            "window_documents",
            window,
            1,
            MAX_WINDOW_DOCUMENTS,
        );
        check_range(
            &mut violations,
            "linger_ms",
            self.linger_ms,
            0,
            MAX_LINGER_MS,
        );
        check_range(&mut violations, "max_padding", self.max_padding, 0.0, 1.0);
        violations
    }

    /// Chooses the token budget by the device where none is configured.
    pub fn resolve(&mut self, on_gpu: bool) {
        if self.token_budget == 0 {
            self.token_budget = if on_gpu {
                GPU_TOKEN_BUDGET
            } else {
                CPU_TOKEN_BUDGET
            };
        }
    }

    /// Longest time a document waits for company.
    pub fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }
}

/// What the planner must know of an item.
pub trait BatchItem {
    /// Tokens of its row, prompt and special tokens counted.
    fn tokens(&self) -> usize;

    /// A hash of its key: items of one hash keep their order.
    fn key_hash(&self) -> u64;
}

/// Items for one run of the model, in the order of their arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<T> {
    /// At least one item.
    pub items: Vec<T>,
    /// Tokens of the longest row, to which the others are padded.
    pub longest_tokens: usize,
    /// Tokens of all rows, padding not counted.
    pub real_tokens: usize,
}

impl<T> Batch<T> {
    /// Tokens of all rows, padding counted.
    pub fn padded_tokens(&self) -> usize {
        self.items.len() * self.longest_tokens
    }
}

struct Waiting<T> {
    item: T,
    tokens: usize,
    key: u64,
    arrived: Instant,
}

/// Collects items and gives them out in batches of similar length.
///
/// Each batch holds the oldest item, so none is passed over for ever, and its neighbours in
/// length. It is due once the window is full, its oldest item has waited for the linger bound,
/// or the caller drains.
pub struct BatchPlanner<T> {
    token_budget: usize,
    max_rows: usize,
    window: usize,
    linger: Duration,
    max_padding: f64,
    next: u64,
    /// By order of arrival.
    waiting: BTreeMap<u64, Waiting<T>>,
    /// By length, then by order of arrival.
    by_length: BTreeSet<(usize, u64)>,
    /// The arrivals of each key, oldest first.
    by_key: HashMap<u64, VecDeque<u64>>,
}

impl<T: BatchItem> BatchPlanner<T> {
    /// A planner without items. Bounds of 0 count as 1.
    pub fn new(settings: &BatchSettings) -> Self {
        Self {
            token_budget: settings.token_budget.max(1),
            max_rows: settings.max_rows.max(1),
            window: settings.window_documents.max(1),
            linger: settings.linger(),
            max_padding: settings.max_padding,
            next: 0,
            waiting: BTreeMap::new(),
            by_length: BTreeSet::new(),
            by_key: HashMap::new(),
        }
    }

    /// Takes an item that arrived at `now`.
    ///
    /// # Errors
    /// Gives the item back when the window is full: take a batch first.
    pub fn push(&mut self, item: T, now: Instant) -> Result<(), T> {
        if self.is_full() {
            return Err(item);
        }
        let arrival = self.next;
        self.next += 1;
        let (tokens, key) = (item.tokens(), item.key_hash());
        self.by_length.insert((tokens, arrival));
        self.by_key.entry(key).or_default().push_back(arrival);
        let waiting = Waiting {
            item,
            tokens,
            key,
            arrived: now,
        };
        self.waiting.insert(arrival, waiting);
        Ok(())
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the window takes no further item until a batch is taken.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= self.window
    }

    /// When the next batch is due though the window is not full; `None` while nothing waits.
    pub fn deadline(&self) -> Option<Instant> {
        let (_, oldest) = self.waiting.first_key_value()?;
        Some(oldest.arrived + self.linger)
    }

    /// The next batch, if one is due at `now`; with `draining`, as long as anything waits.
    pub fn next_batch(&mut self, now: Instant, draining: bool) -> Option<Batch<T>> {
        let (&oldest, first) = self.waiting.first_key_value()?;
        let due = draining || self.is_full() || now >= first.arrived + self.linger;
        if !due {
            return None;
        }
        let chosen = self.neighbours((first.tokens, oldest));
        let chosen = self.keep_key_order(chosen);
        self.take(&chosen)
    }

    /// The anchor and its neighbours in length, as many as the bounds allow; in order of arrival.
    fn neighbours(&self, anchor: (usize, u64)) -> Vec<u64> {
        let mut shorter = self.by_length.range(..anchor).rev().peekable();
        let mut longer = self.by_length.range(anchor..).skip(1).peekable();
        let mut chosen = vec![anchor.1];
        let (mut longest, mut real) = (anchor.0, anchor.0);
        while chosen.len() < self.max_rows {
            let rows = chosen.len() + 1;
            let fits = |longest: usize, real: usize| {
                let padded = rows.saturating_mul(longest);
                padded <= self.token_budget
                    && (padded - real) as f64 <= self.max_padding * padded as f64
            };
            let down = shorter
                .peek()
                .filter(|(tokens, _)| fits(longest, real + tokens));
            let up = longer
                .peek()
                .filter(|(tokens, _)| fits(*tokens, real + tokens));
            // The side that brings less padding: a longer row pads all others, a shorter one itself.
            let next = match (down, up) {
                (Some((less, _)), Some((more, _))) => {
                    if longest - less <= (more - longest) * chosen.len() {
                        shorter.next()
                    } else {
                        longer.next()
                    }
                }
                (Some(_), None) => shorter.next(),
                (None, Some(_)) => longer.next(),
                (None, None) => None,
            };
            let Some((tokens, arrival)) = next else { break };
            longest = longest.max(*tokens);
            real += tokens;
            chosen.push(*arrival);
        }
        chosen.sort_unstable();
        chosen
    }

    /// Leaves out what would overtake an older item of its key.
    fn keep_key_order(&self, chosen: Vec<u64>) -> Vec<u64> {
        if self.by_key.len() == self.waiting.len() {
            return chosen;
        }
        let mut given: HashMap<u64, usize> = HashMap::new();
        let overtakes = |arrival: &u64| {
            let key = self.waiting.get(arrival)?.key;
            let taken = given.entry(key).or_default();
            // The next of its key is the one that stands behind those already taken.
            let in_order = self.by_key.get(&key)?.get(*taken) == Some(arrival);
            *taken += usize::from(in_order);
            in_order.then_some(*arrival)
        };
        chosen.iter().filter_map(overtakes).collect()
    }

    fn take(&mut self, chosen: &[u64]) -> Option<Batch<T>> {
        let mut batch = Batch {
            items: Vec::with_capacity(chosen.len()),
            longest_tokens: 0,
            real_tokens: 0,
        };
        for arrival in chosen {
            let Some(waiting) = self.waiting.remove(arrival) else {
                continue;
            };
            self.by_length.remove(&(waiting.tokens, *arrival));
            if let Some(arrivals) = self.by_key.get_mut(&waiting.key) {
                // In order of its key, hence the first.
                arrivals.pop_front();
                if arrivals.is_empty() {
                    self.by_key.remove(&waiting.key);
                }
            }
            batch.longest_tokens = batch.longest_tokens.max(waiting.tokens);
            batch.real_tokens += waiting.tokens;
            batch.items.push(waiting.item);
        }
        (!batch.items.is_empty()).then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        assert!(BatchSettings::default().violations().is_empty());
        let wrong = BatchSettings {
            token_budget: usize::MAX,
            max_rows: 0,
            window_documents: 0,
            linger_ms: 3_600_000,
            max_padding: f64::NAN,
        };
        assert_eq!(wrong.violations().len(), 5);
    }
}
