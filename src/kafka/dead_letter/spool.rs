//! The spool: whole records that are too large for the broker, one JSON file each, bytes as base64.
//! A file is there completely or not at all, and survives a loss of power once written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::digest;
use crate::document::{Generation, RecordPosition, TopicPartition};
use crate::source::{DeadLetter, Header, SourceRecord};

/// Hexadecimal digits that tell two topics with like names apart.
const TOPIC_DIGITS: usize = 8;

/// Characters of a topic in a file's name.
const MAX_TOPIC_CHARACTERS: usize = 120;

/// A folder of bounded size.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    folder: PathBuf,
    max_bytes: u64,
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
    #[error("the spool folder {} takes no file: {source}", folder.display())]
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
        }
    }

    /// The file of a record: the same record comes to the same file.
    pub(super) fn file_name(position: &RecordPosition) -> String {
        let RecordPosition { partition, offset } = position;
        // The topic of a file is its path; whatever a name cannot hold is replaced, and a hash keeps
        // two topics apart that then look alike.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let named: String = partition
            .topic
            .chars()
            .map(|c| if plain(c) { c } else { '_' })
            .take(MAX_TOPIC_CHARACTERS)
            .collect();
        if named == *partition.topic {
            return format!("{named}-{}-{offset}.json", partition.partition);
        }
        let hash = digest::of_bytes(partition.topic.as_bytes());
        let hash = hash.get(..TOPIC_DIGITS).unwrap_or_default();
        format!("{named}-{hash}-{}-{offset}.json", partition.partition)
    }

    /// Writes a record whole. Returns once it is on disk.
    pub(super) fn write(&self, letter: &DeadLetter) -> Result<(), SpoolError> {
        let name = Self::file_name(&letter.record.position);
        let failed = |source| SpoolError::Io {
            folder: self.folder.clone(),
            source,
        };
        let content = serde_json::to_vec(&SpooledRecord::of(letter))
            .map_err(|error| failed(io::Error::other(error)))?;
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let held = self.bytes_without(&name).map_err(failed)?;
        let wanted = content.len() as u64;
        if held.saturating_add(wanted) > self.max_bytes {
            return Err(SpoolError::Full {
                folder: self.folder.clone(),
                held,
                wanted,
                bound: self.max_bytes,
            });
        }
        self.put(&name, &content).map_err(failed)
    }

    fn put(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(self.folder.join(name))
            .map_err(|error| error.error)?;
        // The name is durable only once the folder is.
        File::open(&self.folder)?.sync_all()
    }

    /// Bytes held, but for the file that is about to be replaced.
    fn bytes_without(&self, name: &str) -> io::Result<u64> {
        let mut held = 0;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name() != name {
                held += entry.metadata()?.len();
            }
        }
        Ok(held)
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
        spool.write(&letter).unwrap();
        spool.write(&letter).unwrap();
        let name = Spool::file_name(&letter.record.position);
        assert_eq!(name, "news-3-42.json");
        assert_eq!(spool.read(&name).unwrap(), letter.record);
        let files = fs::read_dir(folder.path().join("below")).unwrap().count();
        assert_eq!(files, 1, "the same record twice is one file");
    }

    #[test]
    fn the_folder_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path(), 2000);
        spool.write(&letter(1000)).unwrap();
        let mut other = letter(1000);
        other.record.position.offset = 43;
        let error = spool.write(&other).unwrap_err();
        assert!(error.to_string().contains("spool_max_bytes"), "{error}");
        spool.write(&letter(900)).unwrap();
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
