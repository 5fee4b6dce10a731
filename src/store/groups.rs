//! Which groups and jobs have written into a collection, as the collection's own metadata says it:
//! whoever lists a writer there knows that the collection is the one that its commits speak of.
//! Knows no source: what a writer has committed is asked elsewhere.
//!
//! ```text
//! tcbert_worker_writers            {"id": "..."}                  there is a list; the id says which
//! tcbert_worker_group_<digest>     {"group": "...", "since": ...}  a group of workers
//! tcbert_worker_jobs_<number>      {"<digest>": 1764300000, ...}   jobs, with the second of their start
//! ```
//!
//! A server merges metadata by key, so that workers that register at the same moment keep each other's
//! entries. Jobs are many (one a night, for years): they share a bounded number of keys.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::digest;
use crate::document::TopicPartition;
use crate::store::{CollectionInfo, Store, StoreError};

/// Metadata key that says that there is a list.
const LIST_KEY: &str = "tcbert_worker_writers";
const GROUP_PREFIX: &str = "tcbert_worker_group_";
const JOBS_PREFIX: &str = "tcbert_worker_jobs_";
/// Id of a list that was begun in a collection of an earlier version.
const ADOPTED: &str = "adopted";
/// Hexadecimal digits that stand for a name.
const DIGEST_DIGITS: usize = 16;
/// Keys that jobs share.
const JOB_KEYS: u64 = 64;
/// Jobs of one key; the oldest leave first.
const JOBS_PER_KEY: usize = 64;
/// How often it is looked whether another job's registration has overwritten this one's.
const REGISTER_ATTEMPTS: u32 = 8;
/// Pause after an entry is written and before it is looked for, at least. Who read the key before it was written may
/// write it later without this entry; and in a cluster of servers it arrives a little later at some.
const REGISTER_PAUSE: Duration = Duration::from_millis(200);
/// How much longer the pause may be, so that jobs that share a key do not write at the same moments for ever.
const REGISTER_JITTER: Duration = Duration::from_millis(300);

/// Who writes into a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writer {
    /// A group that consumes without end.
    Group(String),
    /// A bounded job, by what makes it the same job.
    Job(String),
}

/// Up to where the partitions have been read into a collection from their oldest record on.
pub type FilledTo = BTreeMap<TopicPartition, i64>;

/// What a collection says of a writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There is no collection.
    NoCollection,
    /// There is no list: it was made by an earlier version, or by hand.
    NoList {
        /// Points in it, markers included.
        points: u64,
    },
    /// It does not list the writer.
    Absent,
    /// It does not list the writer, but backfills have filled it up to these offsets.
    Filled(FilledTo),
    /// It lists the writer.
    Listed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct GroupEntry {
    group: String,
    /// Seconds since the epoch.
    since: i64,
    /// Set by backfills before the group itself has written: topic, partition, offset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    filled_to: Vec<(String, i32, i64)>,
}

impl GroupEntry {
    fn filled_to(&self) -> FilledTo {
        let offset = |(topic, partition, offset): &(String, i32, i64)| {
            (TopicPartition::new(topic.as_str(), *partition), *offset)
        };
        self.filled_to.iter().map(offset).collect()
    }
}

impl Writer {
    fn name(&self) -> &str {
        match self {
            Self::Group(name) | Self::Job(name) => name,
        }
    }

    fn digest(&self) -> String {
        digest::of_parts([self.name()], DIGEST_DIGITS)
    }

    fn key(&self) -> String {
        let digest = self.digest();
        match self {
            Self::Group(_) => format!("{GROUP_PREFIX}{digest}"),
            Self::Job(_) => {
                let number = u64::from_str_radix(&digest, 16).unwrap_or_default();
                format!("{JOBS_PREFIX}{}", number % JOB_KEYS)
            }
        }
    }

    fn standing(&self, found: &CollectionInfo) -> Standing {
        if list_id_of(found).is_none() {
            return Standing::NoList {
                points: found.points,
            };
        }
        match self {
            Self::Group(_) => match entry_of(found, self) {
                None => Standing::Absent,
                Some(entry) if entry.filled_to.is_empty() => Standing::Listed,
                Some(entry) => Standing::Filled(entry.filled_to()),
            },
            Self::Job(_) if jobs_of(found, self).contains_key(&self.digest()) => Standing::Listed,
            Self::Job(_) => Standing::Absent,
        }
    }
}

fn list_id_of(found: &CollectionInfo) -> Option<String> {
    let id = found.metadata.get(LIST_KEY)?.get("id")?.as_str()?;
    Some(id.to_owned())
}

fn entry_of(found: &CollectionInfo, group: &Writer) -> Option<GroupEntry> {
    let written = found.metadata.get(&group.key())?.clone();
    let entry: GroupEntry = serde_json::from_value(written).ok()?;
    (entry.group == group.name()).then_some(entry)
}

fn jobs_of(found: &CollectionInfo, job: &Writer) -> Map<String, Value> {
    let written = found.metadata.get(&job.key());
    written
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default()
}

/// The empty list of a collection that is being created.
pub(super) fn empty_list() -> (String, Value) {
    let id = uuid::Uuid::new_v4().simple().to_string();
    (LIST_KEY.to_owned(), json!({ "id": id }))
}

/// What the collection says of `writer`.
///
/// # Errors
/// A store that fails.
pub async fn standing(store: &dyn Store, writer: &Writer) -> Result<Standing, StoreError> {
    let found = store.collection().await?;
    Ok(found.map_or(Standing::NoCollection, |found| writer.standing(&found)))
}

/// Which list the collection has, so that one that was replaced is noticed; `None` where there is none.
///
/// # Errors
/// A store that fails.
pub async fn list_id(store: &dyn Store) -> Result<Option<String>, StoreError> {
    let found = store.collection().await?;
    Ok(found.as_ref().and_then(list_id_of))
}

/// Lists `writer` in the collection, before anything of it is committed. Begins the list where there is
/// none. Gives the list's id.
///
/// # Errors
/// A store that fails or has no collection.
pub async fn register(
    store: &dyn Store,
    writer: &Writer,
    now: jiff::Timestamp,
) -> Result<String, StoreError> {
    list(store, writer, now, Whole::Unknown).await
}

/// As [`register`], for a job of which it is known whether the collection holds all that it has done.
///
/// # Errors
/// As [`register`].
pub async fn register_job(
    store: &dyn Store,
    job: &Writer,
    now: jiff::Timestamp,
    whole: bool,
) -> Result<String, StoreError> {
    let whole = if whole { Whole::Yes } else { Whole::No };
    list(store, job, now, whole).await
}

/// Whether the collection may lack a part of what a job has done, as where another job has overwritten its entry.
///
/// # Errors
/// A store that fails.
pub async fn lacks_a_part(store: &dyn Store, job: &Writer) -> Result<bool, StoreError> {
    let found = store.collection().await?;
    let since = found.and_then(|found| jobs_of(&found, job).get(&job.digest())?.as_i64());
    Ok(since.is_none_or(|since| since < 0))
}

/// Whether the collection holds all that a job has done; in its entry a negative time says that it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    Unknown,
    Yes,
    No,
}

async fn list(
    store: &dyn Store,
    writer: &Writer,
    now: jiff::Timestamp,
    whole: Whole,
) -> Result<String, StoreError> {
    write_until(store, writer, |found| {
        let list = list_id_of(found);
        if let (Some(list), Standing::Listed) = (&list, writer.standing(found))
            && says(found, writer, whole)
        {
            return Ok(Step::Done(list.clone()));
        }
        let mut metadata = BTreeMap::from([(writer.key(), entry(found, writer, now, whole))]);
        if list.is_none() {
            // The same for all who begin it at this moment.
            metadata.insert(LIST_KEY.to_owned(), json!({ "id": ADOPTED }));
        }
        Ok(Step::Write(metadata))
    })
    .await
}

/// What is still to be done for an entry.
enum Step<T> {
    Done(T),
    Write(BTreeMap<String, Value>),
}

/// Writes metadata until the collection holds what it is to hold: another writer may have read a key before and
/// write it later, without this entry.
async fn write_until<T>(
    store: &dyn Store,
    writer: &Writer,
    next: impl Fn(&CollectionInfo) -> Result<Step<T>, StoreError>,
) -> Result<T, StoreError> {
    for attempt in 0..REGISTER_ATTEMPTS {
        if attempt > 0 {
            let jitter = REGISTER_JITTER.mul_f64(rand::random());
            tokio::time::sleep(REGISTER_PAUSE + jitter).await;
        }
        match next(&existing(store).await?)? {
            Step::Done(done) => return Ok(done),
            Step::Write(metadata) => store.admin().write_metadata(metadata).await?,
        }
    }
    Err(StoreError::Transient(format!(
        "{:?} could not be listed among the writers of the collection",
        writer.name()
    )))
}

/// Whether the entry of a listed writer says what it is to say.
fn says(found: &CollectionInfo, writer: &Writer, whole: Whole) -> bool {
    let since = jobs_of(found, writer)
        .get(&writer.digest())
        .and_then(Value::as_i64);
    match whole {
        Whole::Unknown => true,
        Whole::Yes => since.is_some_and(|since| since >= 0),
        Whole::No => since.is_some_and(|since| since < 0),
    }
}

fn entry(found: &CollectionInfo, writer: &Writer, now: jiff::Timestamp, whole: Whole) -> Value {
    match writer {
        Writer::Group(group) => {
            json!({ "group": group, "since": now.as_second(), "filled_to": [] })
        }
        Writer::Job(_) => {
            let mut jobs = jobs_of(found, writer);
            let since = match whole {
                Whole::No => -now.as_second(),
                Whole::Unknown | Whole::Yes => now.as_second(),
            };
            jobs.insert(writer.digest(), json!(since));
            while jobs.len() > JOBS_PER_KEY {
                let since = |(_, at): &(&String, &Value)| at.as_i64().map(i64::abs);
                let Some(oldest) = jobs.iter().min_by_key(since).map(|(job, _)| job.clone()) else {
                    break;
                };
                jobs.remove(&oldest);
            }
            Value::Object(jobs)
        }
    }
}

/// Notes up to where backfills have filled the collection for a group that has not written into it: each
/// of `read` begins at an offset, ends before another, and counts where it begins at the oldest record
/// there is (`oldest`) or within what was filled before. Gives what is filled now.
///
/// # Errors
/// A store that fails or has no collection.
pub async fn note_filled(
    store: &dyn Store,
    group: &str,
    read: &BTreeMap<TopicPartition, (i64, i64)>,
    oldest: &BTreeMap<TopicPartition, i64>,
    now: jiff::Timestamp,
) -> Result<FilledTo, StoreError> {
    let writer = Writer::Group(group.to_owned());
    write_until(store, &writer, |found| {
        let known = entry_of(found, &writer).map(|entry| entry.filled_to());
        if known.as_ref().is_some_and(FilledTo::is_empty) {
            // The group itself has written.
            return Ok(Step::Done(FilledTo::new()));
        }
        let known = known.unwrap_or_default();
        let filled = filled_with(&known, read, oldest);
        if filled == known {
            return Ok(Step::Done(filled));
        }
        let entry = GroupEntry {
            group: group.to_owned(),
            since: now.as_second(),
            filled_to: filled
                .iter()
                .map(|(partition, to)| (partition.topic.to_string(), partition.partition, *to))
                .collect(),
        };
        let entry = serde_json::to_value(entry)
            .map_err(|error| StoreError::Fatal(format!("cannot encode an entry: {error}")))?;
        Ok(Step::Write(BTreeMap::from([(writer.key(), entry)])))
    })
    .await
}

/// What is filled once `read` has been read as well.
fn filled_with(
    known: &FilledTo,
    read: &BTreeMap<TopicPartition, (i64, i64)>,
    oldest: &BTreeMap<TopicPartition, i64>,
) -> FilledTo {
    let mut filled = known.clone();
    for (partition, (begin, end)) in read {
        let known = known.get(partition).copied();
        let reaches = oldest.get(partition).is_some_and(|oldest| begin <= oldest)
            || known.is_some_and(|known| *begin <= known);
        if reaches && known.is_none_or(|known| known < *end) {
            filled.insert(partition.clone(), *end);
        }
    }
    filled
}

async fn existing(store: &dyn Store) -> Result<CollectionInfo, StoreError> {
    store.collection().await?.ok_or_else(|| {
        StoreError::Fatal("the collection is gone; start the worker again".to_owned())
    })
}
