//! `migrate`: brings the collection to what `migrations/` declares.

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::output;
use crate::assemble;
use crate::settings::Settings;
use crate::store::Store;
use crate::store::migrate::{self, ApplyOptions, Plan, RollbackOptions, Target};

/// Create or change the collection as `migrations/` declares it.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Say which migrations have been applied (the default).
    Status,
    /// Say what `apply` would do.
    Plan,
    /// Apply what has not been applied.
    Apply {
        /// Take the alias from an older collection.
        #[arg(long)]
        switch_alias: bool,
    },
    /// Take back the newest migration.
    Rollback {
        /// Delete a collection even if it holds points.
        #[arg(long)]
        delete_points: bool,
    },
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let target = assemble::migration_target(settings)?;
    super::block_on(async {
        let store = assemble::connect_store(settings).await?;
        let outcome = migrate(store.as_ref(), &target, arguments).await;
        store.close().await.map_err(Failure::failed)?;
        outcome
    })
}

async fn migrate(store: &dyn Store, target: &Target, arguments: &Arguments) -> Result<(), Failure> {
    match arguments.command.unwrap_or(Command::Status) {
        Command::Status => show(
            &migrate::plan(store, target)
                .await
                .map_err(Failure::failed)?,
        ),
        Command::Plan => {
            let plan = migrate::plan(store, target)
                .await
                .map_err(Failure::failed)?;
            told(plan.steps().map(ToString::to_string), "nothing to do")
        }
        Command::Apply { switch_alias } => {
            let options = ApplyOptions { switch_alias };
            let done = migrate::apply(store, target, options, jiff::Timestamp::now()).await;
            told(
                done.map_err(Failure::failed)?
                    .iter()
                    .map(ToString::to_string),
                "nothing to do",
            )
        }
        Command::Rollback { delete_points } => {
            let options = RollbackOptions { delete_points };
            let undone = migrate::rollback(store, target, options)
                .await
                .map_err(Failure::failed)?;
            told(
                undone
                    .map(|number| format!("migration {number} taken back"))
                    .into_iter(),
                "nothing to take back",
            )
        }
    }
}

fn show(plan: &Plan) -> Result<(), Failure> {
    let mut table = output::table(&["migration", "", "applied", "missing"]);
    for state in &plan.migrations {
        let missing: Vec<String> = state.steps.iter().map(ToString::to_string).collect();
        table.add_row(vec![
            format!("{:04} {}", state.migration.number, state.migration.name),
            state.migration.description.clone(),
            state
                .applied_at
                .map_or_else(|| "-".to_owned(), |at| at.to_string()),
            missing.join("; "),
        ]);
    }
    output::line(table)?;
    output::line(format_args!(
        "collection {} with {} points",
        plan.collection, plan.points
    ))
}

fn told(steps: impl Iterator<Item = String>, nothing: &str) -> Result<(), Failure> {
    let steps: Vec<String> = steps.collect();
    if steps.is_empty() {
        return output::line(nothing);
    }
    steps.into_iter().try_for_each(output::line)
}
