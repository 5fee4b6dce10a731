//! The spool: whole records that are too large for the broker, one JSON file each, bytes as base64.
//! A file is there completely or not at all, and survives a loss of power once written. Its name
//! depends on all that it holds: no file ever replaces another one.
//! Several workers may share the folder.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::document::{Generation, RecordPosition, TopicPartition};
use crate::source::{DeadLetter, Header, SourceRecord};
use crate::{digest, durable};

/// Hexadecimal digits of the digest in a file's name.
const CONTENT_DIGITS: usize = 16;

/// How the names of unfinished files begin.
const UNFINISHED: &str = ".tmp";

/// An unfinished file of this age belongs to a process that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// Characters of a topic in a file's name.
const MAX_TOPIC_CHARACTERS: usize = 120;

/// A folder of bounded size.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    folder: PathBuf,
    max_bytes: u64,
    /// One file after the other, or several at once would pass the bound together.
    turn: Arc<parking_lot::Mutex<()>>,
}

/// Why a record is not in the spool; each passes once somebody has made room.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    #[error(
        "the spool folder {} holds {held} bytes, and {wanted} more pass its bound of {bound}; move its \
         files away or raise dead_letter.spool_max_bytes", folder.display()
    )]
    Full {
        folder: PathBuf,
        held: u64,
        wanted: u64,
        bound: u64,
    },
    #[error(
        "the spool folder {} takes no file: {source}; set dead_letter.spool_dir to a folder that the \
         worker can write, on a volume that outlives it", folder.display()
    )]
    Io { folder: PathBuf, source: io::Error },
}

/// A record as its file holds it.
#[derive(Debug, Serialize, Deserialize)]
struct SpooledRecord {
    topic: String,
    partition: i32,
    offset: i64,
    timestamp_ms: Option<i64>,
    key_base64: Option<String>,
    value_base64: Option<String>,
    headers: Vec<SpooledHeader>,
    stage: String,
    class: String,
    message: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct SpooledHeader {
    name: String,
    value_base64: Option<String>,
}

impl Spool {
    pub(super) fn new(folder: &Path, max_bytes: u64) -> Self {
        Self {
            folder: folder.to_path_buf(),
            max_bytes,
            turn: Arc::default(),
        }
    }

    /// The file of a record with this content.
    fn file_name(position: &RecordPosition, content: &[u8]) -> String {
        let RecordPosition { partition, offset } = position;
        // The topic of a file is its path; whatever a name cannot hold is replaced. The digest tells
        // apart what then looks alike, and two records that stood at one offset of a topic that was
        // recreated.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let named: String = partition
            .topic
            .chars()
            .map(|c| if plain(c) { c } else { '_' })
            .take(MAX_TOPIC_CHARACTERS)
            .collect();
        let digest = digest::of_parts([content], CONTENT_DIGITS);
        format!("{named}-{}-{offset}-{digest}.json", partition.partition)
    }

    /// Writes a record whole and gives the name of its file, the same one for the same record.
    /// Returns once it is on disk.
    pub(super) fn write(&self, letter: &DeadLetter) -> Result<String, SpoolError> {
        let content = serde_json::to_vec(&SpooledRecord::of(letter))
            .map_err(|error| self.failed(io::Error::other(error)))?;
        let name = Self::file_name(&letter.record.position, &content);
        let _turn = self.turn.lock();
        durable::create_folder(&self.folder).map_err(|error| self.failed(error))?;
        let held = self
            .bytes_without(&name)
            .map_err(|error| self.failed(error))?;
        let wanted = content.len() as u64;
        if held.saturating_add(wanted) > self.max_bytes {
            return Err(SpoolError::Full {
                folder: self.folder.clone(),
                held,
                wanted,
                bound: self.max_bytes,
            });
        }
        self.put(&name, &content)
            .map_err(|error| self.failed(error))?;
        Ok(name)
    }

    /// Makes the folder and tries whether it takes a file; removes what killed processes left
    /// unfinished. Gives the bytes that it holds.
    pub(super) fn check(&self) -> Result<u64, SpoolError> {
        let probe = || {
            durable::create_folder(&self.folder)?;
            let mut file = self.unfinished()?;
            file.write_all(b"probe")?;
            file.as_file().sync_all()?;
            file.close()?;
            self.remove_abandoned(SystemTime::now());
            self.bytes_without("")
        };
        probe().map_err(|error| self.failed(error))
    }

    /// Bytes that the folder may hold.
    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    fn failed(&self, source: io::Error) -> SpoolError {
        SpoolError::Io {
            folder: self.folder.clone(),
            source,
        }
    }

    fn unfinished(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.folder)
    }

    fn put(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut file = self.unfinished()?;
        file.write_all(content)?;
        durable::persist(file, &self.folder.join(name))
    }

    /// Files in the folder with their sizes and times, but for those that have just gone.
    fn files(&self) -> io::Result<Vec<(String, fs::Metadata)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) => {
                    files.push((entry.file_name().to_string_lossy().into_owned(), metadata));
                }
                // Another worker has finished or removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    /// Bytes held, but for the file that is about to be written again and unfinished ones: nothing
    /// is lost with those, and nobody would know to move them away.
    fn bytes_without(&self, name: &str) -> io::Result<u64> {
        let files = self.files()?;
        let held = files
            .iter()
            .filter(|(held, file)| held != name && !held.starts_with(UNFINISHED) && file.is_file());
        Ok(held.map(|(_, file)| file.len()).sum())
    }

    fn remove_abandoned(&self, now: SystemTime) {
        let is_abandoned = |(name, file): &(String, fs::Metadata)| {
            let age = file
                .modified()
                .ok()
                .and_then(|at| now.duration_since(at).ok());
            name.starts_with(UNFINISHED)
                && file.is_file()
                && age.is_some_and(|age| age > ABANDONED_AFTER)
        };
        // They only take room: the next start tries again.
        for (name, _) in self
            .files()
            .unwrap_or_default()
            .iter()
            .filter(|file| is_abandoned(file))
        {
            let removed = fs::remove_file(self.folder.join(name));
            tracing::info!(
                file = name,
                ?removed,
                "an unfinished spool file of a killed worker"
            );
        }
    }

    /// Reads a record back by the name its letter gives. A name that leads out of the folder is
    /// refused: letters are anybody's.
    pub(super) fn read(&self, name: &str) -> io::Result<SourceRecord> {
        let plain = Path::new(name).file_name().is_some_and(|file| file == name);
        if !plain {
            return Err(io::Error::other(format!(
                "{name:?} is no name of a spool file"
            )));
        }
        let content = fs::read(self.folder.join(name))?;
        let spooled: SpooledRecord = serde_json::from_slice(&content).map_err(io::Error::other)?;
        spooled.into_record().map_err(io::Error::other)
    }
}

impl SpooledRecord {
    fn of(letter: &DeadLetter) -> Self {
        let record = &letter.record;
        let encode = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| STANDARD.encode(bytes));
        Self {
            topic: record.position.partition.topic.to_string(),
            partition: record.position.partition.partition,
            offset: record.position.offset,
            timestamp_ms: record.timestamp_ms,
            key_base64: encode(&record.key),
            value_base64: encode(&record.value),
            headers: record
                .headers
                .iter()
                .map(|header| SpooledHeader {
                    name: header.name.clone(),
                    value_base64: encode(&header.value),
                })
                .collect(),
            stage: letter.stage.clone(),
            class: letter.class.clone(),
            message: letter.message.clone(),
        }
    }

    fn into_record(self) -> Result<SourceRecord, base64::DecodeError> {
        let decode = |text: Option<String>| text.map(|text| STANDARD.decode(text)).transpose();
        let mut headers = Vec::with_capacity(self.headers.len());
        for header in self.headers {
            headers.push(Header {
                name: header.name,
                value: decode(header.value_base64)?,
            });
        }
        Ok(SourceRecord {
            position: RecordPosition {
                partition: TopicPartition::new(self.topic, self.partition),
                offset: self.offset,
            },
            generation: Generation(0),
            timestamp_ms: self.timestamp_ms,
            key: decode(self.key_base64)?,
            value: decode(self.value_base64)?,
            headers,
            fault: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(value_bytes: usize) -> DeadLetter {
        DeadLetter {
            record: SourceRecord {
                position: RecordPosition {
                    partition: TopicPartition::new("news", 3),
                    offset: 42,
                },
                generation: Generation(0),
                timestamp_ms: Some(5),
                key: Some(b"id\xff".to_vec()),
                value: Some(vec![7; value_bytes]),
                headers: vec![Header {
                    name: "h".to_owned(),
                    value: None,
                }],
                fault: None,
            },
            stage: "decode".to_owned(),
            class: "too_large".to_owned(),
            message: "too large".to_owned(),
        }
    }

    #[test]
    fn a_record_comes_back_whole() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(&folder.path().join("below"), 1 << 20);
        let letter = letter(1000);
        let name = spool.write(&letter).unwrap();
        assert_eq!(spool.write(&letter).unwrap(), name);
        assert!(name.starts_with("news-3-42-"), "{name}");
        assert_eq!(spool.read(&name).unwrap(), letter.record);
        let files = fs::read_dir(folder.path().join("below")).unwrap().count();
        assert_eq!(files, 1, "the same record twice is one file");
    }

    #[test]
    fn no_file_replaces_that_of_another_record() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path(), 1 << 20);
        let first = letter(1000);
        let first_name = spool.write(&first).unwrap();
        // The topic was recreated: another record stands at the same offset.
        let second = letter(1001);
        let second_name = spool.write(&second).unwrap();
        // Two topics that a name cannot tell apart.
        let mut third = letter(1000);
        third.record.position.partition = TopicPartition::new("file:a/b", 3);
        let mut fourth = letter(1000);
        fourth.record.position.partition = TopicPartition::new("file:a:b", 3);
        for (name, letter) in [
            (first_name, first),
            (second_name, second),
            (spool.write(&third).unwrap(), third),
            (spool.write(&fourth).unwrap(), fourth),
        ] {
            assert_eq!(spool.read(&name).unwrap(), letter.record, "{name}");
        }
    }

    #[test]
    fn the_folder_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path(), 2000);
        spool.write(&letter(1000)).unwrap();
        spool.write(&letter(1000)).unwrap();
        let mut other = letter(1000);
        other.record.position.offset = 43;
        let error = spool.write(&other).unwrap_err();
        assert!(error.to_string().contains("spool_max_bytes"), "{error}");
    }

    #[test]
    fn what_a_killed_worker_left_unfinished_takes_no_room_and_goes_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path(), 2000);
        fs::write(folder.path().join(".tmpAbC123"), vec![0; 5000]).unwrap();
        spool.write(&letter(1000)).unwrap();
        let held = spool.check().unwrap();
        assert!((1000..2000).contains(&held), "{held}");
        let count = || fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(count(), 2, "it may be another worker's that lives");
        spool.remove_abandoned(SystemTime::now() + 2 * ABANDONED_AFTER);
        assert_eq!(count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told_before_it_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let spool = Spool::new(&folder.path().join("file/spool"), 2000);
        let error = spool.check().unwrap_err();
        assert!(
            error.to_string().contains("dead_letter.spool_dir"),
            "{error}"
        );
        let spool = Spool::new(&folder.path().join("new/spool"), 2000);
        assert_eq!(spool.check().unwrap(), 0);
        assert_eq!(
            fs::read_dir(folder.path().join("new/spool"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(&folder.path().join("spool"), 2000);
        fs::write(folder.path().join("secret"), "{}").unwrap();
        for name in ["../secret", "/etc/hostname", "", ".."] {
            let error = spool.read(name).unwrap_err();
            assert!(error.to_string().contains("no name"), "{name}: {error}");
        }
    }
}
