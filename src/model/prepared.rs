//! Weights in the form that this processor multiplies with, kept in a folder: sessions and processes then map
//! one copy of them instead of making one each. Knows files and what they depend on; the runtime writes them.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::ModelError;
use crate::digest;

/// The graph, and beside it its weights.
const GRAPH: &str = "model.onnx";
/// The weights: as the bundle has them and as the processor wants them.
pub(super) const WEIGHTS: &str = "model.onnx.data";
/// The hashes of both, written last.
const SUMS: &str = "sha256sums";
/// How the names of folders begin that are being written.
const WRITING: &str = ".writing-";
/// After this time nobody writes there any more.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Of the name of a folder.
const KEY_DIGITS: usize = 32;
/// Changes when the layout of the folder does.
const LAYOUT: &str = "prepared-weights/1";

/// The prepared graph in `folder` for a bundle of this fingerprint; where it is missing or damaged `write` makes it
/// at the path that it is given, while other workers that miss it wait.
///
/// # Errors
/// [`ModelError::Prepared`] when the folder cannot be used, and what `write` says.
pub(super) fn graph(
    folder: &Path,
    fingerprint: &str,
    runtime: &str,
    write: impl Fn(&Path) -> Result<(), ModelError>,
) -> Result<PathBuf, ModelError> {
    let failed = |reason: String| unusable(folder, reason);
    let processor = processor().map_err(|error| {
        failed(format!(
            "which processor this is cannot be read from {PROCESSORS}: {error}"
        ))
    })?;
    let key = digest::of_parts([LAYOUT, fingerprint, runtime, &processor], KEY_DIGITS);
    let place = folder.join(key);
    let graph = place.join(GRAPH);
    if check(&place).is_ok() {
        return Ok(graph);
    }
    fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
    // Whoever removes or writes holds the folder, and looks again: what another has just written is never removed.
    let held = File::open(folder).map_err(|error| failed(error.to_string()))?;
    if let Err(TryLockError::WouldBlock) = held.try_lock() {
        tracing::info!(folder = %folder.display(), "another worker prepares weights: waiting for it");
        // A file system that knows no locks is no obstacle; workers that start at once may then disturb each other, once.
        let _ = held.lock();
    }
    match check(&place) {
        Ok(()) => return Ok(graph),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !place.exists() => {}
        Err(error) => {
            tracing::warn!(folder = %place.display(), %error, "prepared weights are written again");
            fs::remove_dir_all(&place).map_err(|error| failed(error.to_string()))?;
        }
    }
    remove_abandoned(folder);
    let writing = writing_folder(folder).map_err(|error| failed(error.to_string()))?;
    write(&writing.path().join(GRAPH))?;
    seal(writing.path()).map_err(|error| failed(error.to_string()))?;
    match fs::rename(writing.path(), &place) {
        Ok(()) => tracing::info!(folder = %place.display(), "prepared weights written"),
        // Where there are no locks another worker may have been faster.
        Err(error) => check(&place).map_err(|_| failed(error.to_string()))?,
    }
    Ok(graph)
}

/// The folder cannot be used, for this reason.
pub(super) fn unusable(folder: &Path, reason: String) -> ModelError {
    ModelError::Prepared {
        folder: folder.display().to_string(),
        reason,
    }
}

/// A folder to write in, which workers of other users can read later.
fn writing_folder(folder: &Path) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(WRITING);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
    builder.tempdir_in(folder)
}

/// Whether both files are what was written.
fn check(place: &Path) -> io::Result<()> {
    let expected = fs::read_to_string(place.join(SUMS))?;
    if expected == sums(place)? {
        return Ok(());
    }
    Err(io::Error::other("the hashes differ"))
}

fn seal(place: &Path) -> io::Result<()> {
    fs::write(place.join(SUMS), sums(place)?)
}

/// In the form of `sha256sum`.
fn sums(place: &Path) -> io::Result<String> {
    let mut lines = String::new();
    for name in [GRAPH, WEIGHTS] {
        let sum = digest::of_reader(File::open(place.join(name))?)?;
        lines += &format!("{sum}  {name}\n");
    }
    Ok(lines)
}

/// A worker that was killed while it wrote leaves hundreds of megabytes behind.
fn remove_abandoned(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let is_writing = entry.file_name().to_string_lossy().starts_with(WRITING);
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let is_old = modified
            .ok()
            .and_then(|at| at.elapsed().ok())
            .is_some_and(|age| age > ABANDONED);
        if is_writing && is_old {
            // It only takes room.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

const PROCESSORS: &str = "/proc/cpuinfo";
/// What tells processors apart that want weights in another form, on x86 and on ARM.
const TRAITS: [&str; 9] = [
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "flags",
    "Features",
    "CPU implementer",
    "CPU part",
    "CPU variant",
];

/// The first processor's traits.
fn processor() -> io::Result<String> {
    let all = fs::read_to_string(PROCESSORS)?;
    let first = all.lines().take_while(|line| !line.trim().is_empty());
    let traits = first.filter(|line| {
        line.split_once(':')
            .is_some_and(|(name, _)| TRAITS.contains(&name.trim()))
    });
    Ok(traits.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// Asks for a graph of `fingerprint`; what it wrote is counted in `written`.
    fn ask(folder: &Path, fingerprint: &str, written: &AtomicUsize) -> PathBuf {
        graph(folder, fingerprint, "runtime 1", |path| {
            written.fetch_add(1, Ordering::SeqCst);
            fs::write(path, fingerprint).unwrap();
            fs::write(path.with_file_name(WEIGHTS), "weights").unwrap();
            Ok(())
        })
        .unwrap()
    }

    #[test]
    fn what_is_there_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let written = AtomicUsize::new(0);
        let first = ask(folder.path(), "a", &written);
        assert_eq!(ask(folder.path(), "a", &written), first);
        assert_eq!(written.load(Ordering::SeqCst), 1);
        let other = ask(folder.path(), "b", &written);
        assert_ne!(other, first);
        assert_eq!(fs::read_to_string(other).unwrap(), "b");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_damaged_or_incomplete_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let written = AtomicUsize::new(0);
        let path = ask(folder.path(), "a", &written);
        let weights = path.with_file_name(WEIGHTS);
        fs::write(&weights, "weighty").unwrap();
        assert_eq!(ask(folder.path(), "a", &written), path);
        assert_eq!(fs::read_to_string(&weights).unwrap(), "weights");
        fs::write(path.with_file_name(SUMS), "").unwrap();
        ask(folder.path(), "a", &written);
        fs::remove_file(path.with_file_name(SUMS)).unwrap();
        ask(folder.path(), "a", &written);
        assert_eq!(written.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn of_workers_that_start_at_once_one_writes() {
        for found in [None, Some("damaged")] {
            let folder = tempfile::tempdir().unwrap();
            if let Some(sums) = found {
                let place = ask(folder.path(), "a", &AtomicUsize::new(0));
                fs::write(place.with_file_name(SUMS), sums).unwrap();
            }
            let written = AtomicUsize::new(0);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let path = ask(folder.path(), "a", &written);
                        assert_eq!(fs::read_to_string(path).unwrap(), "a");
                    });
                }
            });
            assert_eq!(written.load(Ordering::SeqCst), 1, "{found:?}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn without_locks_who_is_second_takes_what_the_first_has_written() {
        let folder = tempfile::tempdir().unwrap();
        let expected = ask(folder.path(), "a", &AtomicUsize::new(0));
        let place = expected.parent().unwrap();
        let done = folder.path().join("done");
        fs::rename(place, &done).unwrap();
        let path = graph(folder.path(), "a", "runtime 1", |path| {
            // While this one writes, another worker is done.
            fs::rename(&done, place).unwrap();
            fs::write(path, "late").unwrap();
            fs::write(path.with_file_name(WEIGHTS), "late").unwrap();
            Ok(())
        })
        .unwrap();
        assert_eq!(path, expected);
        assert_eq!(fs::read_to_string(path).unwrap(), "a");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || unusable(folder.path(), "no".to_owned());
        graph(folder.path(), "a", "runtime 1", |_| Err(refused())).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = graph(file.path(), "a", "runtime 1", |_| Ok(())).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("model.prepared_weights"), "{message}");
        assert!(
            message.contains(&file.path().display().to_string()),
            "{message}"
        );
    }

    #[test]
    fn the_processor_has_traits() {
        assert!(processor().unwrap().lines().count() > 1);
    }
}
