//! `taxonomy`: what there is, and whether a model's vocabulary can say it.

use clap::{Args, Subcommand};

use super::assemble::{self, Engine};
use super::failure::Failure;
use super::output;
use crate::settings::Settings;
use crate::taxonomy::known_names;

/// Inspect taxonomies.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the taxonomies that can be named.
    List,
    /// Say which label words are out of vocabulary, collide or differ in length.
    Check {
        /// A name or a file; the configured one where it is left out.
        taxonomy: Option<String>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Command::List => known_names(assemble::taxonomies_folder(settings)).into_iter().try_for_each(output::line),
        Command::Check { taxonomy, json } => check(settings, taxonomy.as_ref(), *json),
    }
}

fn check(settings: &Settings, taxonomy: Option<&String>, json: bool) -> Result<(), Failure> {
    let mut settings = settings.clone();
    if let Some(taxonomy) = taxonomy {
        settings.tagging.taxonomy.clone_from(taxonomy);
    }
    let report = Engine::check_taxonomy(&settings)?;
    if json {
        output::json(&report)?;
    } else {
        output::line(&report)?;
    }
    if report.is_usable() {
        Ok(())
    } else {
        Err(Failure::failed("the taxonomy cannot be used with this model; change the words named above"))
    }
}
