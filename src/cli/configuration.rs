//! `config`: shows, checks and writes the configuration. Asks neither broker nor store.

use clap::{Args, Subcommand};

use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::settings::{self, Origins, Settings};

/// Show, check and write the configuration.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the settings in effect and where each comes from; secrets are hidden.
    Show {
        /// Print one JSON array.
        #[arg(long)]
        json: bool,
        /// Only settings that a file or an environment variable names.
        #[arg(long)]
        changed: bool,
    },
    /// Check every setting, and name all that is wrong at once.
    Check,
    /// Print every setting with its documentation and default, to start a file for --config from.
    Init,
    /// Print the documentation of every setting as Markdown.
    Reference,
}

pub(super) fn execute(origins: &Origins, arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.action {
        Action::Show { json, changed } => show(origins, *json, *changed),
        Action::Check => {
            Settings::load(origins)?;
            output::line("the configuration is valid")
        }
        Action::Init => output::line(settings::default_toml().trim_end()),
        Action::Reference => output::line(settings::configuration_page().trim_end()),
    }
}

fn show(origins: &Origins, json: bool, changed: bool) -> Result<(), Failure> {
    let mut effective = settings::effective(origins)?;
    if changed {
        effective.retain(|setting| !setting.is_default());
    }
    if json {
        return output::json(&effective);
    }
    let mut table = output::table(&["setting", "value", "from"]);
    for setting in effective {
        let value = setting.value.unwrap_or_else(|| "(left out)".to_owned());
        table.add_row([setting.key, value, setting.origin]);
    }
    output::line(table)
}
