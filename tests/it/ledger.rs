//! The ledger: what was produced, what must come of it, and the check that it did. Records are
//! unique documents, updates and deletions of earlier ones, poison and values too large.
//!
//! Two questions: at every moment, is what the group has committed durable; and at the end, is
//! every id in the store with its newest content or gone, every refused record a dead letter, and
//! nothing else there?

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tcbert_worker::document::DocumentId;
use tcbert_worker::kafka::{
    DeadLetterFilter, KafkaSettings, SampleRecord, group_positions, list_dead_letters,
};
use tcbert_worker::store::{PointFilter, Store};

/// Bytes above which a worker of these tests refuses a value.
pub const MAX_VALUE_BYTES: usize = 20_000;
/// Questions to the store at one time.
const QUESTIONS: usize = 32;

/// What one record must come to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// Written with this title.
    Written(String),
    /// A deletion.
    Deleted,
    /// A dead letter.
    Dead,
}

#[derive(Debug, Clone)]
struct Entry {
    id: String,
    fate: Fate,
}

/// Everything produced, by partition and offset.
pub struct Ledger {
    pub topic: String,
    partitions: Vec<Vec<Entry>>,
    /// Up to where each partition was seen durable.
    checked: Vec<usize>,
    random: StdRng,
    live: Vec<String>,
    next: usize,
}

/// What does not agree.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records that are neither in the store nor dead letters.
    pub lost: Vec<String>,
    /// Documents whose content is not the newest, or that are there though deleted.
    pub stale: Vec<String>,
    /// Ids and letters that nobody produced.
    pub unknown: Vec<String>,
    /// Dead letters that stand there more than once.
    pub repeated_letters: usize,
}

impl Verdict {
    /// Whether everything agrees. A letter may stand there twice: sending one is at least once.
    pub fn holds(&self) -> bool {
        self.lost.is_empty() && self.stale.is_empty() && self.unknown.is_empty()
    }
}

impl Ledger {
    /// An empty ledger over a topic of so many partitions.
    pub fn new(topic: &str, partitions: i32, seed: u64) -> Self {
        let count = usize::try_from(partitions).unwrap();
        Self {
            topic: topic.to_owned(),
            partitions: vec![Vec::new(); count],
            checked: vec![0; count],
            random: StdRng::seed_from_u64(seed),
            live: Vec::new(),
            next: 0,
        }
    }

    /// Draws up the next records. The caller must produce all of them, in this order.
    pub fn draw(&mut self, count: usize) -> Vec<SampleRecord> {
        (0..count).map(|_| self.draw_one()).collect()
    }

    fn draw_one(&mut self) -> SampleRecord {
        let number = self.next;
        self.next += 1;
        let title = format!("第{number}条新闻");
        let (id, value, fate) = match self.random.random_range(0..1000) {
            0..100 if !self.live.is_empty() => {
                let id = self.live[self.random.random_range(0..self.live.len())].clone();
                let value = json!({ "id": id, "title": title }).to_string();
                (id, Some(value), Fate::Written(title))
            }
            100..130 if !self.live.is_empty() => {
                let at = self.random.random_range(0..self.live.len());
                (self.live.swap_remove(at), None, Fate::Deleted)
            }
            130..140 => (
                format!("poison-{number}"),
                Some("{\"title\": ".to_owned()),
                Fate::Dead,
            ),
            140..142 => {
                let id = format!("large-{number}");
                let text = "x".repeat(MAX_VALUE_BYTES + 1);
                let value = json!({ "id": id, "title": text }).to_string();
                (id, Some(value), Fate::Dead)
            }
            _ => {
                let id = format!("doc-{number}");
                self.live.push(id.clone());
                let value = json!({ "id": id, "title": title }).to_string();
                (id, Some(value), Fate::Written(title))
            }
        };
        // One key, one partition: that is what gives its records an order.
        let partition = id
            .bytes()
            .fold(0_usize, |sum, byte| sum * 31 % 65_521 + usize::from(byte))
            % self.partitions.len();
        self.partitions[partition].push(Entry {
            id: id.clone(),
            fate,
        });
        SampleRecord {
            partition: Some(i32::try_from(partition).unwrap()),
            key: Some(id.into_bytes()),
            value: value.map(String::into_bytes),
            ..SampleRecord::default()
        }
    }

    /// Records produced.
    pub fn len(&self) -> usize {
        self.partitions.iter().map(Vec::len).sum()
    }

    /// How many records the group has committed. What it has committed beyond the last look must
    /// be durable; says what is not.
    pub async fn look(
        &mut self,
        kafka: &KafkaSettings,
        store: &Arc<dyn Store>,
    ) -> (usize, Vec<String>) {
        let settings = kafka.clone();
        let Ok(Ok(positions)) =
            tokio::task::spawn_blocking(move || group_positions(&settings)).await
        else {
            // The broker may be down at this moment: nothing is known, nothing is claimed.
            return (self.checked.iter().sum(), Vec::new());
        };
        let mut newly = Vec::new();
        for position in positions {
            let number = usize::try_from(position.partition.partition).unwrap();
            let committed = usize::try_from(position.committed.unwrap_or(0)).unwrap();
            let known = &mut self.checked[number];
            for offset in *known..committed {
                newly.push((number, offset));
            }
            *known = committed.max(*known);
        }
        let dead = newly
            .iter()
            .any(|(number, offset)| self.partitions[*number][*offset].fate == Fate::Dead);
        let letters = if dead {
            match self.letters(kafka).await {
                Some(letters) => letters,
                None => {
                    // The same holds for the letters: looked at again next time.
                    for (number, offset) in newly {
                        self.checked[number] = self.checked[number].min(offset);
                    }
                    return (self.checked.iter().sum(), Vec::new());
                }
            }
        } else {
            BTreeMap::new()
        };
        let partitions = &self.partitions;
        let ahead: Vec<String> = stream::iter(newly)
            .map(|(number, offset)| {
                let letters = &letters;
                async move {
                    let entry = &partitions[number][offset];
                    let durable = match entry.fate {
                        Fate::Dead => letters.contains_key(&(number, offset)),
                        _ => has_reached(store, &entry.id, offset).await,
                    };
                    (!durable).then(|| format!("{}@{number}:{offset}", entry.id))
                }
            })
            .buffer_unordered(QUESTIONS)
            .filter_map(|found| async move { found })
            .collect()
            .await;
        (self.checked.iter().sum(), ahead)
    }

    /// Letters by where their record stood, with how often they are there; `None` where the broker
    /// does not answer.
    async fn letters(&self, kafka: &KafkaSettings) -> Option<BTreeMap<(usize, usize), usize>> {
        let settings = kafka.clone();
        let listed = tokio::task::spawn_blocking(move || {
            list_dead_letters(&settings, &DeadLetterFilter::default())
        });
        let mut letters = BTreeMap::new();
        for letter in listed.await.unwrap().ok()? {
            let origin = letter.origin.expect("a letter says where it is from");
            assert_eq!(*origin.partition.topic, *self.topic, "the topic's header");
            assert_eq!(letter.stage, "decode");
            let number = usize::try_from(origin.partition.partition).unwrap();
            let offset = usize::try_from(origin.offset).unwrap();
            *letters.entry((number, offset)).or_default() += 1;
        }
        Some(letters)
    }

    /// Compares everything with what must be, once nothing moves any more.
    pub async fn verify(&self, kafka: &KafkaSettings, store: &Arc<dyn Store>) -> Verdict {
        let mut verdict = Verdict::default();
        let mut newest = HashMap::new();
        let mut dead = BTreeSet::new();
        for (number, entries) in self.partitions.iter().enumerate() {
            for (offset, entry) in entries.iter().enumerate() {
                if entry.fate == Fate::Dead {
                    dead.insert((number, offset));
                } else {
                    newest.insert(entry.id.as_str(), &entry.fate);
                }
            }
        }
        let letters = self.letters(kafka).await.expect("the letters");
        for place in dead.iter().filter(|place| !letters.contains_key(place)) {
            verdict.lost.push(format!("dead letter of {place:?}"));
        }
        for (place, count) in &letters {
            verdict.repeated_letters += count - 1;
            if !dead.contains(place) {
                verdict.unknown.push(format!("dead letter of {place:?}"));
            }
        }
        let mut living = 0;
        let found: Vec<_> = stream::iter(&newest)
            .map(|(id, fate)| async move { (*id, *fate, title_of(store, id).await) })
            .buffer_unordered(QUESTIONS)
            .collect()
            .await;
        for (id, fate, title) in found {
            match (fate, title) {
                (Fate::Written(wanted), Some(found)) => {
                    living += 1;
                    if *wanted != found {
                        verdict
                            .stale
                            .push(format!("{id}: {found} instead of {wanted}"));
                    }
                }
                (Fate::Written(_), None) => verdict.lost.push(id.to_owned()),
                (Fate::Deleted, Some(found)) => {
                    verdict.stale.push(format!("{id}: {found} is deleted"));
                }
                (Fate::Deleted | Fate::Dead, _) => {}
            }
        }
        let points = store.count(PointFilter::default()).await.unwrap();
        if points != living {
            verdict
                .unknown
                .push(format!("{points} points instead of {living}"));
        }
        verdict
    }
}

/// Whether the store holds what stood at `offset` or something newer, for an id whose records all
/// stand in one partition.
async fn has_reached(store: &Arc<dyn Store>, id: &str, offset: usize) -> bool {
    let payload = store.fetch(DocumentId::new(id).unwrap()).await.unwrap();
    payload
        .and_then(|payload| payload.get("kafka_offset")?.as_u64())
        .is_some_and(|found| found >= offset as u64)
}

/// Title of a document that is in the store and not deleted.
async fn title_of(store: &Arc<dyn Store>, id: &str) -> Option<String> {
    let payload = store.fetch(DocumentId::new(id).unwrap()).await.unwrap()?;
    if payload
        .get("deleted")
        .is_some_and(|deleted| deleted == true)
    {
        return None;
    }
    payload.get("title")?.as_str().map(str::to_owned)
}
