//! What a file of `migrations/` says. Pure.

use serde::Deserialize;

use crate::store::{IndexKind, StoreKind};

/// The files, in the order of their numbers; a test holds that none is missing here.
const FILES: [&str; 2] = [
    include_str!("../../../migrations/0001_collection.toml"),
    include_str!("../../../migrations/0002_version_order.toml"),
];

/// One numbered migration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migration {
    /// 1, 2, 3 ...
    pub number: u32,
    /// Short name, as in the file's name.
    pub name: String,
    /// What it brings, in a few words.
    pub description: String,
    /// The collection that it creates.
    pub(super) collection: Option<Collection>,
    /// Payload indexes that it creates.
    #[serde(default)]
    pub(super) indexes: Vec<Index>,
    /// The alias that it sets.
    pub(super) alias: Option<Alias>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Collection {
    // Named in the file for its reader; there is one value of each.
    #[allow(dead_code)]
    vector: VectorSource,
    #[allow(dead_code)]
    distance: Distance,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum VectorSource {
    Bundle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Distance {
    Cosine,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    pub(super) key: String,
    pub(super) kind: IndexKind,
    /// Stores that need it; empty for all.
    #[serde(default)]
    stores: Vec<StoreKind>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Alias {
    #[allow(dead_code)]
    name: NameSource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NameSource {
    Settings,
}

impl Index {
    pub(super) fn is_for(&self, store: StoreKind) -> bool {
        self.stores.is_empty() || self.stores.contains(&store)
    }
}

/// All migrations, by number.
///
/// # Errors
/// What is wrong in a file; tests hold that nothing is.
pub(super) fn all() -> Result<Vec<Migration>, toml::de::Error> {
    FILES.iter().map(|file| toml::from_str(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_compiled_in_and_numbered() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".toml"))
            .collect();
        names.sort();
        let declared: Vec<String> = all()
            .unwrap()
            .iter()
            .map(|migration| format!("{:04}_{}.toml", migration.number, migration.name))
            .collect();
        assert_eq!(declared, names);
    }

    #[test]
    fn the_embedded_store_skips_what_only_a_server_needs() {
        let first = all().unwrap().remove(0);
        let keys = |store| {
            let wanted = first.indexes.iter().filter(|index| index.is_for(store));
            wanted.map(|index| index.key.clone()).collect::<Vec<_>>()
        };
        assert!(keys(StoreKind::Qdrant).contains(&"kafka_offset".to_owned()));
        assert!(!keys(StoreKind::Embedded).contains(&"kafka_offset".to_owned()));
        assert!(keys(StoreKind::Embedded).contains(&"topic".to_owned()));
    }
}
