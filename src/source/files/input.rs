//! Which files a job reads, in which format, and their bytes decompressed.
//! Must not know what stands in them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use super::FilesError;

/// Deepest folder below one that was named.
const DEEPEST_FOLDER: usize = 16;

/// Bytes read from a file at once.
const READ_BYTES: usize = 256 << 10;

/// How a file's records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One JSON object a line.
    JsonLines,
    /// A header row, then one record a row.
    Csv { delimiter: u8 },
    /// Parquet.
    Parquet,
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One file of a job, as it was when the job started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Input {
    /// The path as the user knows it.
    pub(super) path: PathBuf,
    /// The path without links, by which a file is known again.
    pub(super) canonical: PathBuf,
    pub(super) layout: Layout,
    pub(super) compression: Compression,
    /// Size at the start: what is appended later belongs to a later job.
    pub(super) bytes: u64,
    /// Time of the last change, in milliseconds since the epoch.
    pub(super) modified_ms: u64,
}

/// The files that `paths` name: files as they are, folders with all they hold in the order of names.
/// A file that is named twice is read once.
pub(super) fn find(paths: &[PathBuf]) -> Result<Vec<Input>, FilesError> {
    let mut inputs = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|error| FilesError::read(path, &error))?;
        if metadata.is_dir() {
            let before = inputs.len();
            find_in_folder(path, DEEPEST_FOLDER, &mut seen, &mut inputs)?;
            if inputs.len() == before {
                return Err(FilesError::EmptyFolder(path.clone()));
            }
            continue;
        }
        let (layout, compression) =
            format_of(path).ok_or_else(|| FilesError::UnknownFormat(path.clone()))?;
        push(path, layout, compression, &mut seen, &mut inputs)?;
    }
    if inputs.is_empty() {
        Err(FilesError::NoInput)
    } else {
        Ok(inputs)
    }
}

fn find_in_folder(
    folder: &Path,
    depth: usize,
    seen: &mut BTreeSet<PathBuf>,
    inputs: &mut Vec<Input>,
) -> Result<(), FilesError> {
    let read = |error: io::Error| FilesError::read(folder, &error);
    let mut entries = fs::read_dir(folder)
        .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
        .map_err(read)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Links to folders are not followed: they can lead back.
        let kind = entry
            .file_type()
            .map_err(|error| FilesError::read(&path, &error))?;
        if kind.is_dir() {
            if depth == 0 {
                return Err(FilesError::TooDeep(path));
            }
            find_in_folder(&path, depth - 1, seen, inputs)?;
        } else if path.is_file() {
            match format_of(&path) {
                Some((layout, compression)) => push(&path, layout, compression, seen, inputs)?,
                None => tracing::warn!(file = %path.display(), "left out a file of unknown format"),
            }
        }
    }
    Ok(())
}

fn push(
    path: &Path,
    layout: Layout,
    compression: Compression,
    seen: &mut BTreeSet<PathBuf>,
    inputs: &mut Vec<Input>,
) -> Result<(), FilesError> {
    let read = |error: io::Error| FilesError::read(path, &error);
    let canonical = path.canonicalize().map_err(read)?;
    let metadata = fs::metadata(path).map_err(read)?;
    if !metadata.is_file() {
        return Err(FilesError::NoFile(path.to_owned()));
    }
    let modified = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    if seen.insert(canonical.clone()) {
        inputs.push(Input {
            path: path.to_owned(),
            canonical,
            layout,
            compression,
            bytes: metadata.len(),
            modified_ms: modified
                .and_then(|age| u64::try_from(age.as_millis()).ok())
                .unwrap_or_default(),
        });
    }
    Ok(())
}

/// Layout and compression by a file's name.
fn format_of(path: &Path) -> Option<(Layout, Compression)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (name, compression) = if let Some(name) = name.strip_suffix(".gz") {
        (name, Compression::Gzip)
    } else if let Some(name) = name
        .strip_suffix(".zst")
        .or_else(|| name.strip_suffix(".zstd"))
    {
        (name, Compression::Zstd)
    } else {
        (name.as_str(), Compression::None)
    };
    let layout = match name.rsplit_once('.')?.1 {
        "jsonl" | "ndjson" | "json" => Layout::JsonLines,
        "csv" => Layout::Csv { delimiter: b',' },
        "tsv" => Layout::Csv { delimiter: b'\t' },
        "parquet" if compression == Compression::None => Layout::Parquet,
        _ => return None,
    };
    Some((layout, compression))
}

/// The bytes of an input up to its size at the start, decompressed; `done` counts what is read of the
/// file itself.
pub(super) fn open(input: &Input, done: Arc<AtomicU64>) -> Result<Box<dyn Read>, FilesError> {
    let read = |error: io::Error| FilesError::read(&input.path, &error);
    let file = File::open(&input.path).map_err(read)?.take(input.bytes);
    let counted = BufReader::with_capacity(READ_BYTES, Counted { inner: file, done });
    Ok(match input.compression {
        Compression::None => Box::new(counted),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(counted)),
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(counted).map_err(read)?)
        }
    })
}

struct Counted<R> {
    inner: R,
    done: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_name() {
        let format = |name: &str| format_of(Path::new(name));
        assert_eq!(
            format("a.jsonl"),
            Some((Layout::JsonLines, Compression::None))
        );
        assert_eq!(
            format("a.b.JSON.GZ"),
            Some((Layout::JsonLines, Compression::Gzip))
        );
        assert_eq!(
            format("a.ndjson.zst"),
            Some((Layout::JsonLines, Compression::Zstd))
        );
        assert_eq!(
            format("a.tsv"),
            Some((Layout::Csv { delimiter: b'\t' }, Compression::None))
        );
        assert_eq!(
            format("a.parquet"),
            Some((Layout::Parquet, Compression::None))
        );
        for unknown in ["a", "a.txt", "a.gz", "a.parquet.gz", "jsonl", ".."] {
            assert_eq!(format(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn folders_are_read_in_the_order_of_names_and_each_file_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("b")).unwrap();
        for name in [
            "c.jsonl",
            "a.csv",
            "b/x.jsonl",
            "readme.txt",
            ".hidden.jsonl",
        ] {
            fs::write(path(name), "x").unwrap();
        }
        let inputs = find(&[path("c.jsonl"), folder.path().to_owned()]).unwrap();
        let names: Vec<_> = inputs
            .iter()
            .map(|i| {
                i.path
                    .strip_prefix(folder.path())
                    .unwrap()
                    .to_str()
                    .unwrap()
            })
            .collect();
        assert_eq!(names, ["c.jsonl", "a.csv", "b/x.jsonl"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let unknown = folder.path().join("a.txt");
        fs::write(&unknown, "x").unwrap();
        assert!(matches!(
            find(&[folder.path().to_owned()]),
            Err(FilesError::EmptyFolder(_))
        ));
        assert!(matches!(
            find(&[unknown]),
            Err(FilesError::UnknownFormat(_))
        ));
        assert!(matches!(
            find(&[folder.path().join("no.jsonl")]),
            Err(FilesError::Read { .. })
        ));
        assert!(matches!(find(&[]), Err(FilesError::NoInput)));
    }
}
