//! `migrate`: brings the collection to what `migrations/` declares.

use clap::{Args, Subcommand};

use super::assemble;
use super::failure::Failure;
use super::output;
use crate::settings::Settings;

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
    Apply,
    /// Take back the last migration that can be taken back.
    Rollback,
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    assemble::runtime()?.block_on(async {
        let migrator = assemble::migrator(settings).await?;
        match arguments.command.unwrap_or(Command::Status) {
            Command::Status => {
                let mut table = output::table(&["migration", "state"]);
                for (name, state) in migrator.status().await.map_err(Failure::failed)? {
                    table.add_row(vec![name, state]);
                }
                output::line(table)
            }
            Command::Plan => told(migrator.plan().await.map_err(Failure::failed)?, "nothing to do"),
            Command::Apply => told(migrator.apply().await.map_err(Failure::failed)?, "nothing to do"),
            Command::Rollback => told(migrator.rollback().await.map_err(Failure::failed)?, "nothing to take back"),
        }
    })
}

fn told(steps: Vec<String>, nothing: &str) -> Result<(), Failure> {
    if steps.is_empty() {
        return output::line(nothing);
    }
    steps.into_iter().try_for_each(output::line)
}
