//! What migrations lead to, what is recorded of them, and why they cannot be done.

use serde::{Deserialize, Serialize};

use crate::store::{CollectionSpec, StoreError, StoreKind, StoreSettings};

/// Metadata key of the record of applied migrations.
pub(super) const APPLIED_KEY: &str = "tcbert_worker_migrations";

/// Metadata key of the embedding fingerprint.
pub(super) const FINGERPRINT_KEY: &str = "tcbert_worker_embedding_fingerprint";

/// What the collection must be for this model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// Name and width of the vectors, from the bundle.
    pub vector: CollectionSpec,
    /// Which space the vectors lie in; vectors of two spaces do not mix.
    pub embedding_fingerprint: String,
}

/// What migrations lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which store, because not every index is needed in each.
    pub kind: StoreKind,
    /// Collection as configured.
    pub collection: String,
    /// Alias as configured; empty for none.
    pub alias: String,
    /// Vector and space.
    pub expectation: Expectation,
}

impl Target {
    /// What `settings` ask for, with this model.
    pub fn new(settings: &StoreSettings, expectation: Expectation) -> Self {
        Self {
            kind: settings.kind,
            collection: settings.collection.clone(),
            alias: settings.alias.clone(),
            expectation,
        }
    }
}

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The migration's number.
    pub number: u32,
    /// The migration's name.
    pub name: String,
    /// When it was applied.
    #[serde(with = "rfc3339")]
    pub at: jiff::Timestamp,
}

/// Times in the record, as text.
mod rfc3339 {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        at: &jiff::Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(at)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<jiff::Timestamp, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// Why a collection cannot be brought to what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MigrateError {
    /// The collection has not been created.
    #[error(
        "the collection {collection:?} does not exist; create it with `tcbert-worker migrate apply`"
    )]
    Missing {
        /// Its name.
        collection: String,
    },
    /// Vectors of this model do not fit.
    #[error(
        "the collection {collection:?} holds vectors of {found} numbers, this model makes {wanted}; \
         set store.collection to a new name and run a backfill, or use the model that filled it"
    )]
    VectorSize {
        /// Its name.
        collection: String,
        /// Width in the collection.
        found: usize,
        /// Width of the model.
        wanted: usize,
    },
    /// Vectors are compared in a way that is not cosine.
    #[error(
        "the collection {collection:?} compares vectors by {found}, this program needs Cosine; set \
         store.collection to a new name"
    )]
    Distance {
        /// Its name.
        collection: String,
        /// What it uses.
        found: String,
    },
    /// Vectors of another model, prompt or whitening are in it.
    #[error(
        "the collection {collection:?} holds vectors of another model, prompt or whitening \
         (embedding fingerprint {found}, now {wanted}), and the two do not mix; set \
         store.collection to a new name and run a backfill, or go back to what filled it"
    )]
    Fingerprint {
        /// Its name.
        collection: String,
        /// What it was filled with.
        found: String,
        /// What would fill it now.
        wanted: String,
    },
    /// The server's limits forbid what the worker does.
    #[error("strict mode of the collection {collection:?} forbids our requests: {limits}")]
    Limits {
        /// Its name.
        collection: String,
        /// The limits, each with what to do.
        limits: String,
    },
    /// The record says something that this program does not know.
    #[error(
        "the collection {collection:?} was migrated by a newer version of this program (migration \
         {number}); use that version"
    )]
    Newer {
        /// Its name.
        collection: String,
        /// The unknown migration.
        number: u32,
    },
    /// Rolling back would delete points.
    #[error(
        "rolling back would delete the collection {collection:?} with its {points} points; say so \
         with --delete-points"
    )]
    WouldDelete {
        /// Its name.
        collection: String,
        /// Points in it.
        points: u64,
    },
    /// A file of `migrations/` is wrong.
    #[error("a migration cannot be read: {0}")]
    Declaration(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Store(error) => error,
            other => Self::Fatal(other.to_string()),
        }
    }
}
