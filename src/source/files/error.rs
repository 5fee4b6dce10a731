//! Why files cannot be read; each message says which file and what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::source::SourceError;

/// Why files cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// No file was named.
    #[error("no input was named; name files or folders")]
    NoInput,
    /// A file or folder that cannot be read.
    #[error("{} cannot be read: {reason}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Neither a file nor a folder.
    #[error("{} is neither a file nor a folder", .0.display())]
    NoFile(PathBuf),
    /// A folder without a file of a known format.
    #[error("the folder {} holds no file that can be read: .jsonl, .ndjson, .json, .csv, .tsv (each also .gz or .zst) or .parquet", .0.display())]
    EmptyFolder(PathBuf),
    /// Folders in folders without an end in sight.
    #[error("the folder {} is nested too deeply", .0.display())]
    TooDeep(PathBuf),
    /// A file whose name does not say what it is.
    #[error("the name of {} does not say its format; known are .jsonl, .ndjson, .json (one object a line), .csv, .tsv (each also .gz or .zst) and .parquet", .0.display())]
    UnknownFormat(PathBuf),
    /// A CSV without its first row.
    #[error("{} has no header row with the names of its columns", .0.display())]
    NoHeader(PathBuf),
    /// One array, or one object over many lines, instead of one object a line.
    #[error("{} holds one JSON value over its lines; write one object a line instead (jq -c 'if type == \"array\" then .[] else . end' FILE > FILE.jsonl)", .0.display())]
    OneJsonValue(PathBuf),
    /// Two columns of one name: which one is meant?
    #[error("{} has two columns named {name:?}; rename one of them in its header row", path.display())]
    RepeatedColumn {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A file that breaks its own format.
    #[error("{} cannot be read: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// Another process works on the same job.
    #[error(
        "the job {0:?} is being worked on by another process; wait for it or choose another name"
    )]
    Busy(String),
    /// The progress of the job cannot be kept.
    #[error("the progress of the job cannot be kept in {}: {reason}; mend or remove it (backfill.state_dir)", path.display())]
    State {
        /// File or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl FilesError {
    /// What the system said about `path`.
    pub(super) fn read(path: &Path, error: &io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }
}

impl From<FilesError> for SourceError {
    fn from(error: FilesError) -> Self {
        Self::Fatal(error.to_string())
    }
}
