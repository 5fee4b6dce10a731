//! Migrations: what a collection should be (`declaration`), what is missing (`plan`, pure), and doing it.
//!
//! A migration says how things shall be, not how to get there: the plan compares it with what the
//! collection is, so that applying twice changes nothing and a half-applied one is completed. What was
//! applied, and which model's vectors the collection holds, is recorded in the collection's own
//! metadata (on a server: the collection's metadata; embedded: `collection.json` in its folder), so
//! that the record is moved, copied and deleted together with what it speaks of.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::store::{Store, StoreError, groups};

mod declaration;
mod plan;
mod target;

pub use declaration::Migration;
pub use plan::{MigrationState, Plan, Step};
use target::{APPLIED_KEY, FINGERPRINT_KEY};
pub use target::{Applied, Expectation, MigrateError, Target};

/// How far `apply` may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ApplyOptions {
    /// Take the alias from another collection; otherwise it stays there.
    pub switch_alias: bool,
}

/// How far `rollback` may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RollbackOptions {
    /// Delete a collection that holds points.
    pub delete_points: bool,
}

/// What has been applied and what is missing.
///
/// # Errors
/// A collection that can never become what it should be, or a store that fails.
pub async fn plan(store: &dyn Store, target: &Target) -> Result<Plan, MigrateError> {
    let migrations =
        declaration::all().map_err(|error| MigrateError::Declaration(error.to_string()))?;
    let found = store.collection().await?;
    let alias = match target.alias.as_str() {
        "" => None,
        alias => store.admin().alias(alias.to_owned()).await?,
    };
    plan::compare(migrations, found, alias, target)
}

/// Applies what is missing; gives what was done, nothing where nothing was missing.
///
/// # Errors
/// As [`plan`].
pub async fn apply(
    store: &dyn Store,
    target: &Target,
    options: ApplyOptions,
    now: jiff::Timestamp,
) -> Result<Vec<Step>, MigrateError> {
    let plan = plan(store, target).await?;
    let mut done = Vec::new();
    for step in plan.steps() {
        if matches!(step, Step::MoveAlias { .. }) && !options.switch_alias {
            tracing::info!(alias = target.alias, %step, "left where it is");
            continue;
        }
        if let Err(error) = take(store, target, step).await {
            if !another_was_faster(store, target, step).await? {
                return Err(error.into());
            }
            tracing::info!(collection = target.collection, %step, "another worker was faster");
            continue;
        }
        tracing::info!(collection = target.collection, %step, "migrated");
        done.push(step.clone());
    }
    if !done.is_empty() || plan.needs_record() {
        record(store, target, &plan, now).await?;
    }
    // What the plan could not see in a collection that did not exist.
    check(store, target).await?;
    Ok(done)
}

async fn take(store: &dyn Store, target: &Target, step: &Step) -> Result<(), StoreError> {
    let admin = store.admin();
    match step {
        Step::CreateCollection { .. } => {
            // With its space from the first moment on, so that of two workers with different models that
            // both begin here, one is refused.
            let metadata = BTreeMap::from([fingerprint(target), groups::empty_list()]);
            admin
                .create_collection(target.expectation.vector.clone(), metadata)
                .await
        }
        Step::CreateIndex { key, kind } => admin.create_index(key.clone(), *kind).await,
        Step::CreateAlias { collection } | Step::MoveAlias { collection, .. } => {
            admin
                .set_alias(target.alias.clone(), Some(collection.clone()))
                .await
        }
    }
}

/// Whether a collection that could not be created is there, and fits: several workers of a new
/// deployment begin at the same moment.
async fn another_was_faster(
    store: &dyn Store,
    target: &Target,
    step: &Step,
) -> Result<bool, MigrateError> {
    if !matches!(step, Step::CreateCollection { .. }) {
        return Ok(false);
    }
    let plan = plan(store, target).await?;
    let is_missing = |step: &Step| matches!(step, Step::CreateCollection { .. });
    Ok(!plan.steps().any(is_missing))
}

fn fingerprint(target: &Target) -> (String, Value) {
    let fingerprint = target.expectation.embedding_fingerprint.as_str();
    (FINGERPRINT_KEY.to_owned(), Value::from(fingerprint))
}

async fn record(
    store: &dyn Store,
    target: &Target,
    plan: &Plan,
    now: jiff::Timestamp,
) -> Result<(), MigrateError> {
    let applied: Vec<Applied> = plan
        .migrations
        .iter()
        .map(|state| Applied {
            number: state.migration.number,
            name: state.migration.name.clone(),
            at: state.applied_at.unwrap_or(now),
        })
        .collect();
    let applied = serde_json::to_value(applied)
        .map_err(|error| MigrateError::Declaration(error.to_string()))?;
    let metadata = BTreeMap::from([(APPLIED_KEY.to_owned(), applied), fingerprint(target)]);
    Ok(store.admin().write_metadata(metadata).await?)
}

/// Refuses a collection that does not fit; what is merely missing (an index, an alias) is logged.
///
/// # Errors
/// [`MigrateError`] with what to do.
pub async fn check(store: &dyn Store, target: &Target) -> Result<(), MigrateError> {
    let plan = plan(store, target).await?;
    for step in plan.steps() {
        match step {
            Step::CreateCollection { .. } => {
                return Err(MigrateError::Missing {
                    collection: target.collection.clone(),
                });
            }
            Step::MoveAlias { .. } => {}
            Step::CreateIndex { .. } | Step::CreateAlias { .. } => {
                tracing::warn!(%step, "pending, see `tcbert-worker migrate status`");
            }
        }
    }
    if plan.limits.is_empty() {
        return Ok(());
    }
    Err(MigrateError::Limits {
        collection: target.collection.clone(),
        limits: plan.limits.join("; "),
    })
}

/// Takes back the newest applied migration; gives its number, `None` where none is applied.
/// Points are deleted only if `options` say so.
///
/// # Errors
/// [`MigrateError::WouldDelete`], or a store that fails.
pub async fn rollback(
    store: &dyn Store,
    target: &Target,
    options: RollbackOptions,
) -> Result<Option<u32>, MigrateError> {
    let plan = plan(store, target).await?;
    let mut states = plan.migrations.iter().rev();
    let Some(last) = states.find(|state| state.applied_at.is_some()) else {
        return Ok(None);
    };
    let admin = store.admin();
    let migration = &last.migration;
    let number = migration.number;
    if migration.collection.is_some() && plan.points > 0 && !options.delete_points {
        return Err(MigrateError::WouldDelete {
            collection: target.collection.clone(),
            points: plan.points,
        });
    }
    if migration.alias.is_some() && plan.alias.as_ref() == Some(&plan.collection) {
        admin.set_alias(target.alias.clone(), None).await?;
    }
    if migration.collection.is_some() {
        admin.drop_collection().await?;
        return Ok(Some(number));
    }
    for index in &migration.indexes {
        admin.drop_index(index.key.clone()).await?;
    }
    let left: Vec<Applied> = plan
        .applied
        .iter()
        .filter(|applied| applied.number != number)
        .cloned()
        .collect();
    let left =
        serde_json::to_value(left).map_err(|error| MigrateError::Declaration(error.to_string()))?;
    let metadata = BTreeMap::from([(APPLIED_KEY.to_owned(), left)]);
    admin.write_metadata(metadata).await?;
    Ok(Some(number))
}
