//! Names that survive a loss of power: a file or folder is there for good only once the folder that
//! names it is synced. Must not know what is kept.

use std::fs::{self, File};
use std::io;
use std::path::Path;

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
    fn what_stands_in_the_way_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        create_folder(&folder.path().join("file")).unwrap_err();
        create_folder(&folder.path().join("file/below")).unwrap_err();
    }
}
