//! The engine's log. The engine writes and synchronises it, and reads nothing of it back: opening does not replay it,
//! and what is durable is what `flush` has written into the segments (read in the source of qdrant-edge 0.7.2, held
//! by tests). It is more than half of the bytes that a point makes the disk take, so that they are dropped before
//! they get there. What is left of the log are the numbers of its entries, which must never come again: the engine
//! takes a write whose number a segment has seen before for an old one and drops it.
//!
//! Knows the names of the log's files, and that a file begins with a header; knows nothing of entries.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::store::StoreError;
use crate::store::embedded::folder::{sync_folder, unusable};

/// Bytes of one file of the log.
pub(super) const FILE_BYTES: usize = 8 * 1024 * 1024;
/// Name of the file that entries go to, before its number; the engine keeps the next one ready.
const OPEN: &str = "open-";
/// Name of a full file, before the number of its first entry.
const CLOSED: &str = "closed-";
/// What stays of a file: its header, and what shares a page with it.
const KEPT_BYTES: u64 = 4096;
/// How far numbers go on at each start. After a crash the names of the last two full files may be lost, and with
/// them how many entries there were; three files hold fewer entries than this, of 24 bytes at least.
const JUMP: u64 = 1 << 20;

/// The log's folder. Whoever has it is the only thread that writes to the log.
pub(super) struct Log {
    folder: PathBuf,
}

impl Log {
    /// The log of the shard in this folder; it need not exist.
    pub(super) fn of_shard(shard: &Path) -> Self {
        Self {
            folder: shard.join("wal"),
        }
    }

    /// Bytes of the log's files, the dropped ones included.
    pub(super) fn bytes(&self) -> u64 {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return 0;
        };
        entries
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.len())
            .sum()
    }

    /// Drops what was written to the open file and has not reached the disk. The file keeps its length, because the
    /// engine has mapped it. Where the system does not cut mapped files, nothing is dropped.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] when the file does not get its length back: the engine must not write to it.
    pub(super) fn discard(&self) -> Result<(), StoreError> {
        let Some((_, path)) = self.numbered(OPEN)?.into_iter().min() else {
            return Ok(());
        };
        let cut = |path: &Path| -> std::io::Result<Option<(File, u64)>> {
            let file = File::options().write(true).open(path)?;
            let length = file.metadata()?.len();
            if length <= KEPT_BYTES {
                return Ok(None);
            }
            file.set_len(KEPT_BYTES)?;
            Ok(Some((file, length)))
        };
        match cut(&path) {
            Ok(None) => Ok(()),
            Ok(Some((file, length))) => file.set_len(length).map_err(|error| {
                StoreError::Fatal(format!("{} cannot grow again: {error}", path.display()))
            }),
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "the log stays on the disk");
                Ok(())
            }
        }
    }

    /// Lets the log begin anew, empty, with numbers that were never used. Only while the engine is not open: it has
    /// flushed what the log says into the segments, or nobody was told that it is durable.
    ///
    /// # Errors
    /// When a file cannot be renamed or removed.
    pub(super) fn restart(&self) -> Result<(), StoreError> {
        let mut closed = self.numbered(CLOSED)?;
        closed.sort_unstable();
        let mut open = self.numbered(OPEN)?;
        open.sort_unstable();
        // The last full file says where the numbers had got to; without one they began at zero.
        let Some((number, kept)) = closed
            .pop()
            .or_else(|| open.first().map(|(_, path)| (0, path.clone())))
        else {
            return Ok(());
        };
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: std::io::Error| unusable(&path, &error)
        };
        let file = File::options().write(true).open(&kept);
        file.and_then(|file| file.set_len(KEPT_BYTES))
            .map_err(failed(&kept))?;
        let number = number.saturating_add(JUMP);
        let restarted = self.folder.join(format!("{CLOSED}{number}"));
        fs::rename(&kept, &restarted).map_err(failed(&kept))?;
        let rest = closed.into_iter().chain(open).map(|(_, path)| path);
        for path in rest.filter(|path| *path != kept) {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        // On the disk before anything is written, or a power cut might bring the old numbers back.
        sync_folder(&self.folder)
    }

    /// The files whose name is `prefix` and a number.
    fn numbered(&self, prefix: &str) -> Result<Vec<(u64, PathBuf)>, StoreError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unusable(&self.folder, &error)),
        };
        let files = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name.strip_prefix(prefix)?.parse().ok()?, entry.path()))
        });
        Ok(files.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn log(names: &[&str], bytes: usize) -> (tempfile::TempDir, Log) {
        let shard = tempfile::tempdir().unwrap();
        let log = Log::of_shard(shard.path());
        fs::create_dir_all(&log.folder).unwrap();
        for name in names {
            fs::write(log.folder.join(name), vec![7; bytes]).unwrap();
        }
        (shard, log)
    }

    /// Names of the log's files with their lengths.
    fn files(log: &Log) -> BTreeMap<String, u64> {
        let entries = fs::read_dir(&log.folder).unwrap().map(Result::unwrap);
        entries
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, entry.metadata().unwrap().len())
            })
            .collect()
    }

    #[test]
    fn a_restart_goes_on_beyond_the_newest_full_file() {
        let names = ["closed-0", "closed-90", "closed-1000", "open-4", "open-5"];
        let (_shard, log) = log(&names, 9000);
        log.restart().unwrap();
        let name = format!("closed-{}", 1000 + JUMP);
        assert_eq!(files(&log), BTreeMap::from([(name, KEPT_BYTES)]));
        log.restart().unwrap();
        let name = format!("closed-{}", 1000 + 2 * JUMP);
        assert_eq!(files(&log), BTreeMap::from([(name, KEPT_BYTES)]));
    }

    #[test]
    fn a_young_log_leaves_zero_behind() {
        let (_shard, young) = log(&["open-1", "open-2"], 9000);
        young.restart().unwrap();
        assert_eq!(
            files(&young).into_keys().collect::<Vec<_>>(),
            [format!("closed-{JUMP}")]
        );
        let (_shard, none) = log(&[], 0);
        none.restart().unwrap();
        assert_eq!(files(&none), BTreeMap::new());
        Log::of_shard(Path::new("/nowhere")).restart().unwrap();
    }

    #[test]
    fn dropping_keeps_header_and_length_of_the_open_file_alone() {
        let bytes = 1 << 20;
        let (_shard, log) = log(&["closed-0", "open-10", "open-9"], bytes);
        let before = files(&log);
        log.discard().unwrap();
        assert_eq!(files(&log), before);
        let read = |name: &str| fs::read(log.folder.join(name)).unwrap();
        let kept = usize::try_from(KEPT_BYTES).unwrap();
        assert!(read("open-9")[..kept].iter().all(|byte| *byte == 7));
        assert!(read("open-9")[kept..].iter().all(|byte| *byte == 0));
        for other in ["closed-0", "open-10"] {
            assert_eq!(read(other), vec![7; bytes], "{other}");
        }
        let blocks = fs::metadata(log.folder.join("open-9")).unwrap().blocks();
        assert!(blocks * 512 <= 2 * KEPT_BYTES, "{blocks}");
    }
}
