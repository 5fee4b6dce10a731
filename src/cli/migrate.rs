//! `migrate`: brings the collection to what `migrations/` declares.

use clap::{Args, Subcommand};

use crate::assemble;
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::cli::terminal::runtime::block_on;
use crate::settings::Settings;
use crate::store::Store;
use crate::store::migrate::{self, ApplyOptions, Plan, RollbackOptions, Target};

/// Create or change the collection as `migrations/` declares it.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print one JSON object.
    #[arg(long, global = true)]
    json: bool,
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
    block_on(async {
        let store = assemble::connect_store(settings).await?;
        let outcome = migrate(store.as_ref(), &target, arguments).await;
        store.close().await.map_err(Failure::failed)?;
        outcome
    })
}

async fn migrate(store: &dyn Store, target: &Target, arguments: &Arguments) -> Result<(), Failure> {
    match arguments.command.unwrap_or(Command::Status) {
        Command::Status => {
            let plan = planned(store, target).await?;
            if arguments.json {
                return output::json(&status(&plan));
            }
            show(&plan)
        }
        Command::Plan => {
            let plan = planned(store, target).await?;
            told(plan.steps(), "nothing to do", arguments.json)
        }
        Command::Apply { switch_alias } => {
            let options = ApplyOptions { switch_alias };
            let done = migrate::apply(store, target, options, jiff::Timestamp::now())
                .await
                .map_err(Failure::failed)?;
            told(done.iter(), "nothing to do", arguments.json)
        }
        Command::Rollback { delete_points } => {
            let options = RollbackOptions { delete_points };
            let undone = migrate::rollback(store, target, options)
                .await
                .map_err(Failure::failed)?;
            let undone = undone.map(|number| format!("migration {number} taken back"));
            told(undone.iter(), "nothing to take back", arguments.json)
        }
    }
}

async fn planned(store: &dyn Store, target: &Target) -> Result<Plan, Failure> {
    migrate::plan(store, target).await.map_err(Failure::failed)
}

fn status(plan: &Plan) -> serde_json::Value {
    let state = |state: &migrate::MigrationState| {
        serde_json::json!({
            "number": state.migration.number,
            "name": state.migration.name,
            "description": state.migration.description,
            "applied_at": state.applied_at.map(|at| at.to_string()),
            "missing": in_words(state.steps.iter()),
        })
    };
    serde_json::json!({
        "collection": plan.collection,
        "points": plan.points,
        "migrations": plan.migrations.iter().map(state).collect::<Vec<_>>(),
    })
}

fn show(plan: &Plan) -> Result<(), Failure> {
    let mut table = output::table(&["migration", "", "applied", "missing"]);
    for state in &plan.migrations {
        let missing = in_words(state.steps.iter());
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

/// Prints steps, one a line; as JSON an object with the list `steps`.
fn told<S: ToString>(
    steps: impl Iterator<Item = S>,
    nothing: &str,
    json: bool,
) -> Result<(), Failure> {
    let steps = in_words(steps);
    if json {
        return output::json(&serde_json::json!({ "steps": steps }));
    }
    if steps.is_empty() {
        return output::line(nothing);
    }
    steps.into_iter().try_for_each(output::line)
}

fn in_words<S: ToString>(steps: impl Iterator<Item = S>) -> Vec<String> {
    steps.map(|step| step.to_string()).collect()
}
