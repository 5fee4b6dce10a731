//! Compares what migrations declare with what a collection is. Pure.

use std::fmt;

use crate::store::migrate::declaration::Migration;
use crate::store::migrate::target::{APPLIED_KEY, Applied, FINGERPRINT_KEY, MigrateError, Target};
use crate::store::{CollectionInfo, IndexKind};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create the collection.
    CreateCollection {
        /// Name of the vector.
        vector_name: String,
        /// Width of the vectors.
        vector_size: usize,
    },
    /// Index a payload key.
    CreateIndex {
        /// The key.
        key: String,
        /// What for.
        kind: IndexKind,
    },
    /// Let the alias stand for the collection.
    CreateAlias {
        /// The collection.
        collection: String,
    },
    /// Take the alias from another collection; only on demand.
    MoveAlias {
        /// Where it points now.
        from: String,
        /// The collection.
        collection: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateCollection {
                vector_name,
                vector_size,
            } => write!(
                formatter,
                "create the collection with vector {vector_name:?} of {vector_size} numbers, Cosine"
            ),
            Self::CreateIndex { key, kind } => {
                write!(formatter, "index {key} ({kind:?})")
            }
            Self::CreateAlias { collection } => {
                write!(formatter, "let the alias stand for {collection}")
            }
            Self::MoveAlias { from, collection } => write!(
                formatter,
                "move the alias from {from} to {collection} (with --switch-alias)"
            ),
        }
    }
}

/// One migration: applied when, and what it still lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationState {
    /// The migration.
    pub migration: Migration,
    /// When it was applied, by the record; `None` where it was not.
    pub applied_at: Option<jiff::Timestamp>,
    /// What is missing.
    pub steps: Vec<Step>,
}

/// What was applied and what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Name of the collection, an alias resolved.
    pub collection: String,
    /// Points in it, markers included.
    pub points: u64,
    /// All migrations, by number.
    pub migrations: Vec<MigrationState>,
    /// The record as found.
    pub applied: Vec<Applied>,
    /// Where the configured alias points.
    pub alias: Option<String>,
    /// Limits of the server that our requests would break.
    pub limits: Vec<String>,
    /// Whether the collection's fingerprint is recorded.
    fingerprint_recorded: bool,
}

impl Plan {
    /// Everything that is missing, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.migrations.iter().flat_map(|state| &state.steps)
    }

    /// Whether nothing is left but what is done on demand.
    pub fn is_complete(&self) -> bool {
        !self.needs_record()
            && self
                .steps()
                .all(|step| matches!(step, Step::MoveAlias { .. }))
    }

    pub(super) fn needs_record(&self) -> bool {
        !self.fingerprint_recorded
            || self
                .migrations
                .iter()
                .any(|state| state.applied_at.is_none())
    }
}

/// The plan for a collection as `found`, with `alias` pointing where it does.
pub(super) fn compare(
    migrations: Vec<Migration>,
    found: Option<CollectionInfo>,
    alias: Option<String>,
    target: &Target,
) -> Result<Plan, MigrateError> {
    let mut applied: Vec<Applied> = Vec::new();
    let mut fingerprint_recorded = false;
    if let Some(found) = &found {
        fits(found, target)?;
        fingerprint_recorded = same_space(found, target)?;
        applied = found
            .metadata
            .get(APPLIED_KEY)
            .and_then(|record| serde_json::from_value(record.clone()).ok())
            .unwrap_or_default();
    }
    let newest = migrations.last().map_or(0, |migration| migration.number);
    if let Some(unknown) = applied.iter().find(|applied| applied.number > newest) {
        return Err(MigrateError::Newer {
            collection: target.collection.clone(),
            number: unknown.number,
        });
    }
    let collection = found
        .as_ref()
        .map_or_else(|| target.collection.clone(), |found| found.name.clone());
    let states = migrations
        .into_iter()
        .map(|migration| MigrationState {
            applied_at: applied
                .iter()
                .find(|applied| applied.number == migration.number)
                .map(|applied| applied.at),
            steps: missing(
                &migration,
                found.as_ref(),
                alias.as_deref(),
                &collection,
                target,
            ),
            migration,
        })
        .collect();
    Ok(Plan {
        collection,
        points: found.as_ref().map_or(0, |found| found.points),
        migrations: states,
        applied,
        alias,
        limits: found.map(|found| found.limits).unwrap_or_default(),
        fingerprint_recorded,
    })
}

fn fits(found: &CollectionInfo, target: &Target) -> Result<(), MigrateError> {
    let wanted = &target.expectation.vector;
    if found.vector_size != wanted.vector_size {
        return Err(MigrateError::VectorSize {
            collection: found.name.clone(),
            found: found.vector_size,
            wanted: wanted.vector_size,
        });
    }
    // Of normalised vectors the dot product is the cosine.
    if !["Cosine", "Dot"].contains(&found.distance.as_str()) {
        return Err(MigrateError::Distance {
            collection: found.name.clone(),
            found: found.distance.clone(),
        });
    }
    Ok(())
}

/// Whether the collection's space is recorded; an error where it is another one.
fn same_space(found: &CollectionInfo, target: &Target) -> Result<bool, MigrateError> {
    let wanted = &target.expectation.embedding_fingerprint;
    match found
        .metadata
        .get(FINGERPRINT_KEY)
        .and_then(|value| value.as_str())
    {
        None => Ok(false),
        Some(recorded) if recorded == wanted => Ok(true),
        Some(recorded) => Err(MigrateError::Fingerprint {
            collection: found.name.clone(),
            found: recorded.to_owned(),
            wanted: wanted.clone(),
        }),
    }
}

fn missing(
    migration: &Migration,
    found: Option<&CollectionInfo>,
    alias: Option<&str>,
    collection: &str,
    target: &Target,
) -> Vec<Step> {
    let mut steps = Vec::new();
    if migration.collection.is_some() && found.is_none() {
        steps.push(Step::CreateCollection {
            vector_name: target.expectation.vector.vector_name.clone(),
            vector_size: target.expectation.vector.vector_size,
        });
    }
    for index in &migration.indexes {
        let indexed = found.is_some_and(|found| found.indexes.contains_key(&index.key));
        if index.is_for(target.kind) && !indexed {
            steps.push(Step::CreateIndex {
                key: index.key.clone(),
                kind: index.kind,
            });
        }
    }
    if migration.alias.is_some() && !target.alias.is_empty() {
        match alias {
            None => steps.push(Step::CreateAlias {
                collection: collection.to_owned(),
            }),
            Some(now) if now == collection => {}
            Some(now) => steps.push(Step::MoveAlias {
                from: now.to_owned(),
                collection: collection.to_owned(),
            }),
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::store::migrate::declaration;
    use crate::store::{CollectionSpec, Expectation, StoreKind};

    fn target(alias: &str) -> Target {
        Target {
            kind: StoreKind::Embedded,
            collection: "documents".into(),
            alias: alias.into(),
            expectation: Expectation {
                vector: CollectionSpec {
                    vector_name: "compact".into(),
                    vector_size: 4,
                },
                embedding_fingerprint: "e1".into(),
            },
        }
    }

    fn collection() -> CollectionInfo {
        CollectionInfo {
            name: "documents".into(),
            vector_size: 4,
            vector_name: "compact".into(),
            distance: "Cosine".into(),
            points: 9,
            indexes: BTreeMap::new(),
            metadata: BTreeMap::new(),
            limits: Vec::new(),
        }
    }

    fn planned(
        found: Option<CollectionInfo>,
        alias: Option<&str>,
        target: &Target,
    ) -> Result<Plan, MigrateError> {
        let alias = alias.map(str::to_owned);
        compare(declaration::all().unwrap(), found, alias, target)
    }

    #[test]
    fn a_new_collection_lacks_everything() {
        let plan = planned(None, None, &target("live")).unwrap();
        let steps: Vec<_> = plan.steps().collect();
        assert!(matches!(
            steps.first(),
            Some(Step::CreateCollection { vector_size: 4, .. })
        ));
        assert!(matches!(steps.last(), Some(Step::CreateAlias { .. })));
        assert!(!plan.is_complete());
    }

    #[test]
    fn a_half_applied_migration_is_completed() {
        let mut found = collection();
        found.indexes.insert("topic".into(), IndexKind::Keyword);
        let plan = planned(Some(found), None, &target("")).unwrap();
        let keys: Vec<_> = plan
            .steps()
            .filter_map(|step| match step {
                Step::CreateIndex { key, .. } => Some(key.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(keys, ["source", "published_at", "deleted"]);
    }

    #[test]
    fn an_alias_of_another_collection_is_not_taken_unasked() {
        let plan = planned(Some(collection()), Some("documents_1"), &target("live")).unwrap();
        assert!(
            matches!(plan.steps().last(), Some(Step::MoveAlias { from, .. }) if from == "documents_1")
        );
        let plan = planned(Some(collection()), Some("documents"), &target("live")).unwrap();
        assert!(
            plan.steps()
                .all(|step| matches!(step, Step::CreateIndex { .. }))
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut wide = collection();
        wide.vector_size = 768;
        let error = planned(Some(wide), None, &target("")).unwrap_err();
        assert!(matches!(
            error,
            MigrateError::VectorSize {
                found: 768,
                wanted: 4,
                ..
            }
        ));
        assert!(error.to_string().contains("store.collection"));

        let mut far = collection();
        far.distance = "Euclid".into();
        let error = planned(Some(far), None, &target("")).unwrap_err();
        assert!(matches!(error, MigrateError::Distance { .. }));

        let mut other = collection();
        other.metadata.insert(FINGERPRINT_KEY.into(), "e0".into());
        let error = planned(Some(other), None, &target("")).unwrap_err();
        assert!(matches!(error, MigrateError::Fingerprint { .. }));

        let mut newer = collection();
        newer.metadata.insert(
            APPLIED_KEY.into(),
            serde_json::json!([{"number": 99, "name": "later", "at": "2026-01-01T00:00:00Z"}]),
        );
        let error = planned(Some(newer), None, &target("")).unwrap_err();
        assert!(matches!(error, MigrateError::Newer { number: 99, .. }));
    }
}
