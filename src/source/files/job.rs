//! How far a job has come: one small file that is replaced whole, so that a crash leaves the old or the
//! new one. Must not know how records are read.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::FilesError;
use super::input::Input;
use crate::document::TopicPartition;
use crate::{digest, durable};

/// Hexadecimal digits of the digest in the name of a state file.
const DIGEST_DIGITS: usize = 16;

/// The form of the state file.
const STATE_VERSION: u32 = 1;

/// Bits of a version's order that number the files of a job; above them stands the job's start in
/// seconds. 33 bits are left for it below 2^53, until the year 2242.
const FILE_BITS: u32 = 20;

/// The last start that fits, but for the numbers of a job's files.
const LAST_START: i64 = (1 << 33) - 2;

/// Bytes that are read of a lock file at most: a number of seconds.
const LOCK_FILE_BYTES: u64 = 32;

/// A job under way: what is committed of each file.
#[derive(Debug)]
pub(super) struct Job {
    state_file: PathBuf,
    /// Held as long as the job lives, so that no second process works on it.
    _lock: File,
    name: String,
    /// When the job began, in seconds since the epoch; a resumed job keeps it.
    started: i64,
    files: Vec<FileProgress>,
    by_partition: HashMap<TopicPartition, usize>,
    changed: bool,
}

#[derive(Debug)]
struct FileProgress {
    path: PathBuf,
    partition: TopicPartition,
    /// The record to go on at.
    next: i64,
    /// After the last record, once the file has been read to its end.
    end: Option<i64>,
}

impl FileProgress {
    fn is_done(&self) -> bool {
        self.end.is_some_and(|end| self.next >= end)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    job: String,
    /// Absent in what earlier versions of this program wrote.
    #[serde(default)]
    started: Option<i64>,
    files: Vec<StateOfFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StateOfFile {
    /// For whoever looks into the file.
    path: String,
    next: i64,
    done: bool,
}

impl Job {
    /// Begins a job `now` or resumes an unfinished one of the same name, inputs and fingerprint.
    pub(super) fn open(
        folder: &Path,
        name: &str,
        fingerprint: &str,
        inputs: &[Input],
        now: jiff::Timestamp,
    ) -> Result<Self, FilesError> {
        let state = |error: io::Error| FilesError::State {
            path: folder.to_owned(),
            reason: error.to_string(),
        };
        fs::create_dir_all(folder).map_err(state)?;
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join(format!("{name}.lock")))
            .map_err(state)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FilesError::Busy(name.to_owned())),
            Err(TryLockError::Error(error)) => return Err(state(error)),
        }
        let state_file = folder.join(format!(
            "{name}-{}.json",
            digest_of(name, fingerprint, inputs)
        ));
        let saved = load(&state_file, inputs.len())?;
        let started = match saved.as_ref().and_then(|saved| saved.started) {
            Some(started) => started.clamp(0, LAST_START),
            None => next_start(&mut lock, now).map_err(state)?,
        };
        let mut job = Self {
            state_file,
            _lock: lock,
            name: name.to_owned(),
            started,
            files: Vec::with_capacity(inputs.len()),
            by_partition: HashMap::with_capacity(inputs.len()),
            changed: false,
        };
        for (index, input) in inputs.iter().enumerate() {
            let saved = saved.as_ref().and_then(|state| state.files.get(index));
            let next = saved.map_or(0, |saved| saved.next.max(0));
            let partition = job.new_partition(input);
            job.by_partition.insert(partition.clone(), index);
            job.files.push(FileProgress {
                path: input.path.clone(),
                partition,
                next,
                end: saved.filter(|saved| saved.done).map(|_| next),
            });
        }
        Ok(job)
    }

    /// Each file is a topic of its own without an order of age, so that time and then the version's order
    /// decide which of two records is older, and progress is counted a file.
    fn new_partition(&self, input: &Input) -> TopicPartition {
        let topic = format!("file:{}", input.path.display());
        let partition = TopicPartition::new(topic.as_str(), TopicPartition::NO_PARTITION);
        if !self.by_partition.contains_key(&partition) {
            return partition;
        }
        // Two paths that are not UTF-8 can look the same.
        let topic: Arc<str> = format!("{topic}#{}", self.files.len()).into();
        TopicPartition::new(topic, TopicPartition::NO_PARTITION)
    }

    /// What decides between files where times are equal or missing: the later job wins, within a job
    /// the later file.
    pub(super) fn version_order(&self, partition: &TopicPartition) -> i64 {
        let file = self.by_partition.get(partition).copied();
        let file = file.and_then(|file| i64::try_from(file).ok());
        (self.started << FILE_BITS) + file.unwrap_or_default()
    }

    /// What makes it the same job, in one text.
    pub(super) fn id(&self) -> String {
        let stem = self.state_file.file_stem().unwrap_or_default();
        format!("files:{}", stem.to_string_lossy())
    }

    /// The files that are not done: index, partition, record to go on at.
    pub(super) fn unfinished(&self) -> Vec<(usize, TopicPartition, i64)> {
        self.files
            .iter()
            .enumerate()
            .filter(|(_, file)| !file.is_done())
            .map(|(index, file)| (index, file.partition.clone(), file.next))
            .collect()
    }

    /// Records that an earlier run has done.
    pub(super) fn resumed_records(&self) -> u64 {
        self.files.iter().map(|file| file.next.unsigned_abs()).sum()
    }

    /// Notes that everything below `next` is durable.
    pub(super) fn commit(&mut self, partition: &TopicPartition, next: i64) {
        let file = self
            .by_partition
            .get(partition)
            .and_then(|index| self.files.get_mut(*index));
        if let Some(file) = file
            && next > file.next
        {
            file.next = next;
            self.changed = true;
        }
    }

    /// Notes that a file has been read to its end; `end` is after its last record.
    pub(super) fn ended(&mut self, index: usize, end: i64) {
        if let Some(file) = self.files.get_mut(index) {
            file.end = Some(end);
            self.changed = true;
        }
    }

    /// Whether everything of all files is durable.
    pub(super) fn is_finished(&self) -> bool {
        self.files.iter().all(FileProgress::is_done)
    }

    /// Writes the state if it changed; a finished job leaves none, so that it starts anew next time.
    pub(super) fn save(&mut self) -> Result<(), FilesError> {
        if !self.changed {
            return Ok(());
        }
        let written = if self.is_finished() {
            match fs::remove_file(&self.state_file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        } else {
            self.write()
        };
        written.map_err(|error| FilesError::State {
            path: self.state_file.clone(),
            reason: error.to_string(),
        })?;
        self.changed = false;
        Ok(())
    }

    fn write(&self) -> io::Result<()> {
        let state = State {
            version: STATE_VERSION,
            job: self.name.clone(),
            started: Some(self.started),
            files: self
                .files
                .iter()
                .map(|file| StateOfFile {
                    path: file.path.display().to_string(),
                    next: file.next,
                    done: file.is_done(),
                })
                .collect(),
        };
        let folder = self.state_file.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(&state)?)?;
        durable::persist(file, &self.state_file)
    }
}

/// When a new job begins: now, but later than the one before it of this name, which its lock file
/// holds. So jobs that follow each other within a second have an order.
fn next_start(lock: &mut File, now: jiff::Timestamp) -> io::Result<i64> {
    let mut text = Vec::new();
    Read::by_ref(lock)
        .take(LOCK_FILE_BYTES)
        .read_to_end(&mut text)?;
    let before = std::str::from_utf8(&text).ok();
    let before: Option<i64> = before.and_then(|text| text.trim().parse().ok());
    let earliest = before.map_or(0, |before| before.saturating_add(1));
    let started = now
        .as_second()
        .clamp(earliest.clamp(0, LAST_START), LAST_START);
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(started.to_string().as_bytes())?;
    Ok(started)
}

/// The state of an unfinished job, if there is one.
fn load(state_file: &Path, files: usize) -> Result<Option<State>, FilesError> {
    let wrong = |reason: String| FilesError::State {
        path: state_file.to_owned(),
        reason,
    };
    let bytes = match fs::read(state_file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let state: State = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if state.version != STATE_VERSION || state.files.len() != files {
        return Err(wrong(
            "it was written by another version of this program".to_owned(),
        ));
    }
    Ok(Some(state))
}

/// What makes a job the same job: name, fingerprint, and each file as it is.
fn digest_of(name: &str, fingerprint: &str, inputs: &[Input]) -> String {
    let mut parts = vec![name.as_bytes().to_vec(), fingerprint.as_bytes().to_vec()];
    for input in inputs {
        parts.push(input.canonical.as_os_str().as_encoded_bytes().to_vec());
        parts.push(input.bytes.to_le_bytes().to_vec());
        parts.push(input.modified_ms.to_le_bytes().to_vec());
    }
    digest::of_parts(parts, DIGEST_DIGITS)
}
