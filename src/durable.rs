//! Names that survive a loss of power: a file or folder is there for good only once the folder that
//! names it is synced. Must not know what is kept.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use tempfile::NamedTempFile;

/// Makes what a folder names durable.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    let here = Path::new(".");
    let folder = if folder.as_os_str().is_empty() {
        here
    } else {
        folder
    };
    File::open(folder)?.sync_all()
}

/// Gives a finished temporary file of the same folder its name, durably: after a crash there is the file that had
/// the name before or the new one.
///
/// # Errors
/// When it cannot be synced or renamed.
pub(crate) fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(path.parent().unwrap_or(Path::new("")))
}

/// Makes a folder and those above it where they are missing, durably.
///
/// # Errors
/// When one of them cannot be made.
pub(crate) fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent();
    if let Some(above) = above {
        create_folder(above)?;
    }
    match fs::create_dir(folder) {
        // Another process may have made it meanwhile.
        Err(_) if folder.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => above.map_or(Ok(()), sync_folder),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn folders_are_made_with_those_above_them() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        create_folder(&deep).unwrap();
        create_folder(&deep).unwrap();
        assert!(deep.is_dir());
        sync_folder(&deep).unwrap();
        create_folder(Path::new("")).unwrap();
        sync_folder(Path::new("")).unwrap();
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        for content in ["long before", "after"] {
            let mut file = NamedTempFile::new_in(folder.path()).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            persist(file, &path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_stands_in_the_way_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        create_folder(&folder.path().join("file")).unwrap_err();
        create_folder(&folder.path().join("file/below")).unwrap_err();
    }
}
