//! The embedded store's folder: what lies where, who may use it, how much room is left. Knows files; knows nothing
//! of points.
//!
//! ```text
//! <store.path>/aliases.json                     alias -> collection
//! <store.path>/<collection>/lock                held while a process uses the collection
//! <store.path>/<collection>/collection.json     what migrations keep about it
//! <store.path>/<collection>/shard/              the engine's own
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::durable;
use crate::store::StoreError;

/// The engine writes this file first of all: where it is, the collection exists.
const SHARD_CONFIG: &str = "edge_config.json";

type Aliases = BTreeMap<String, String>;

/// A collection's folder, locked for this process while the value lives.
pub(super) struct Folder {
    root: PathBuf,
    collection: String,
    folder: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes and locks the folder of `collection` (or of the collection that this alias names).
    pub(super) fn open(root: &Path, collection: &str) -> Result<Self, StoreError> {
        let aliases: Aliases = read_json(&root.join("aliases.json"))?.unwrap_or_default();
        let exists = root.join(collection).join("shard").exists();
        let collection = match aliases.get(collection) {
            Some(target) if !exists => target.as_str(),
            _ => collection,
        };
        let folder = root.join(collection);
        fs::create_dir_all(&folder).map_err(|error| unusable(&folder, &error))?;
        let lock_path = folder.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|error| unusable(&lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Fatal(format!(
                    "the embedded store in {} is in use by another process; stop that one, give \
                     this one another store.path, or let both write to a Qdrant server \
                     (store.kind = \"qdrant\")",
                    folder.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(unusable(&lock_path, &error)),
        }
        Ok(Self {
            root: root.to_owned(),
            collection: collection.to_owned(),
            folder,
            _lock: lock,
        })
    }

    /// Name of the collection, an alias resolved.
    pub(super) fn collection(&self) -> &str {
        &self.collection
    }

    /// Where the engine keeps its files.
    pub(super) fn shard(&self) -> PathBuf {
        self.folder.join("shard")
    }

    /// Whether the collection has been created.
    pub(super) fn has_shard(&self) -> bool {
        self.shard().join(SHARD_CONFIG).exists()
    }

    /// Deletes the collection's files; the lock stays.
    pub(super) fn remove_shard(&self) -> Result<(), StoreError> {
        for result in [
            fs::remove_dir_all(self.shard()),
            fs::remove_file(self.folder.join("collection.json")),
        ] {
            match result {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(unusable(&self.folder, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn metadata(&self) -> Result<BTreeMap<String, Value>, StoreError> {
        Ok(read_json(&self.folder.join("collection.json"))?.unwrap_or_default())
    }

    pub(super) fn write_metadata(
        &self,
        metadata: &BTreeMap<String, Value>,
    ) -> Result<(), StoreError> {
        write_json(&self.folder, "collection.json", metadata)
    }

    pub(super) fn alias(&self, alias: &str) -> Result<Option<String>, StoreError> {
        let mut aliases: Aliases = read_json(&self.root.join("aliases.json"))?.unwrap_or_default();
        Ok(aliases.remove(alias))
    }

    pub(super) fn set_alias(
        &self,
        alias: &str,
        collection: Option<String>,
    ) -> Result<(), StoreError> {
        let mut aliases: Aliases = read_json(&self.root.join("aliases.json"))?.unwrap_or_default();
        match collection {
            Some(collection) => aliases.insert(alias.to_owned(), collection),
            None => aliases.remove(alias),
        };
        write_json(&self.root, "aliases.json", &aliases)
    }

    /// Free bytes of the disk that holds the folder.
    pub(super) fn free_bytes(&self) -> Result<u64, StoreError> {
        fs4::available_space(&self.folder).map_err(|error| unusable(&self.folder, &error))
    }
}

pub(super) fn unusable(path: &Path, error: &std::io::Error) -> StoreError {
    let message = format!(
        "cannot use {} of the embedded store: {error}; check that store.path leads to a folder on a \
         disk that works and that this user may write",
        path.display()
    );
    if is_full(&error.to_string()) {
        StoreError::Full(message)
    } else {
        StoreError::Fatal(message)
    }
}

/// Whether an error's text says that the disk takes no more.
pub(super) fn is_full(text: &str) -> bool {
    [
        "No space left on device",
        "StorageFull",
        "Disk quota exceeded",
        "Read-only file system",
    ]
    .iter()
    .any(|sign| text.contains(sign))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(path, &error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        StoreError::Fatal(format!(
            "{} is damaged: {error}; move the folder {} of the embedded store (store.path) away \
                 and run a backfill",
            path.display(),
            path.parent().unwrap_or(path).display()
        ))
    })
}

/// Replaces a file in one step: after a crash there is the old one or the new one.
fn write_json<T: Serialize>(folder: &Path, name: &str, value: &T) -> Result<(), StoreError> {
    let path = folder.join(name);
    let failed = |error: std::io::Error| unusable(&path, &error);
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| StoreError::Fatal(format!("cannot encode {name}: {error}")))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(&bytes).map_err(failed)?;
    durable::persist(file, &path).map_err(failed)
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    durable::sync_folder(folder).map_err(|error| unusable(folder, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_user_is_told_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let first = Folder::open(root.path(), "documents").unwrap();
        let second = Folder::open(root.path(), "documents").err().unwrap();
        assert!(matches!(second, StoreError::Fatal(reason) if reason.contains("another process")));
        drop(first);
        assert!(Folder::open(root.path(), "documents").is_ok());
    }

    #[test]
    fn a_damaged_file_says_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("aliases.json"), "{").unwrap();
        let text = Folder::open(root.path(), "documents")
            .err()
            .unwrap()
            .to_string();
        for part in ["aliases.json", "store.path", "backfill"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_path_that_is_no_folder_names_the_setting() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = Folder::open(file.path(), "documents")
            .err()
            .unwrap()
            .to_string();
        assert!(text.contains("store.path"), "{text}");
    }

    #[test]
    fn an_alias_leads_to_its_collection() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path(), "documents_2").unwrap();
        folder
            .set_alias("current", Some("documents_2".into()))
            .unwrap();
        drop(folder);
        let folder = Folder::open(root.path(), "current").unwrap();
        assert_eq!(folder.collection(), "documents_2");
        folder.set_alias("current", None).unwrap();
        assert_eq!(folder.alias("current"), Ok(None));
    }
}
