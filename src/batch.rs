//! Which documents go through the model together: a token budget, a window sorted by length, a
//! bound on waiting. Pure: items say their length and key, the time is passed in; must not know
//! what an item holds.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::keys::section;

/// Token budget on a processor: a batch whose activations stay in its caches. Measured with 4 layers of
/// 256 on one core: 640 tokens 1.26 ms for a title, 2560 tokens 1.55 ms.
const CPU_TOKEN_BUDGET: usize = 768;
/// Token budget on a GPU, which needs many rows to be busy.
const GPU_TOKEN_BUDGET: usize = 16_384;

section! {
    /// How documents are put together for one run of the model.
    pub struct BatchSettings in "batch" {
        /// Tokens of a batch, rows times the longest row (padding counts). 0: 768 on a CPU, where a batch should stay
        /// in the caches, 16384 on a GPU, which larger batches fill better. A longer text goes alone.
        token_budget: usize = 0, in 0..=1 << 22;
        /// Documents of a batch.
        max_rows: usize = 1024, in 1..=1 << 16;
        /// Documents that wait at most; among them those of similar length are found, so that little is padded. It
        /// bounds the memory of this stage.
        window_documents: usize = 2048, in 1..=1 << 20;
        /// Milliseconds that a document waits for company when traffic is slow.
        linger_ms: u64 = 20, in 0..=60_000;
        /// Share of a batch that may be padding, before the rest waits for the next batch.
        max_padding: f64 = 0.1, in 0.0..=1.0;
    }
}

impl BatchSettings {
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
mod tests;
