//! `taxonomy`: what there is, and whether a model's vocabulary can say it.

use clap::{Args, Subcommand};

use crate::assemble;
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::score::PlanReport;
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
    List {
        /// Print one JSON array.
        #[arg(long)]
        json: bool,
    },
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
        Command::List { json } => {
            let names = known_names(folder(settings));
            if *json {
                return output::json(&serde_json::json!(names));
            }
            names.into_iter().try_for_each(output::line)
        }
        Command::Check { taxonomy, json } => check(settings, taxonomy.as_ref(), *json),
    }
}

fn check(settings: &Settings, taxonomy: Option<&String>, json: bool) -> Result<(), Failure> {
    let mut settings = settings.clone();
    if let Some(taxonomy) = taxonomy {
        settings.tagging.taxonomy.clone_from(taxonomy);
    }
    let (taxonomy, report) = assemble::taxonomy_report(&settings)?;
    let unsayable: Vec<&str> = taxonomy
        .labels
        .iter()
        .filter(|label| {
            label.words.iter().all(|word| {
                report
                    .out_of_vocabulary
                    .iter()
                    .any(|unknown| unknown.word == *word)
            })
        })
        .map(|label| label.name.as_str())
        .collect();
    let clashes = report
        .collisions
        .iter()
        .any(|collision| collision.first.0 != collision.second.0);
    if json {
        output::json(&serde_json::json!({
            "taxonomy": taxonomy.name,
            "labels": taxonomy.labels.len(),
            "usable": unsayable.is_empty() && !clashes,
            "report": report,
        }))?;
    } else {
        show(&taxonomy.name, taxonomy.labels.len(), &report)?;
    }
    if !unsayable.is_empty() {
        return Err(Failure::failed(format!(
            "the model's vocabulary has no word for {}; give them words that it knows",
            unsayable.join(", ")
        )));
    }
    if clashes {
        return Err(Failure::failed(
            "some labels cannot be told apart; give them different words",
        ));
    }
    Ok(())
}

fn show(name: &str, labels: usize, report: &PlanReport) -> Result<(), Failure> {
    output::line(format_args!(
        "{name}: {labels} {}, {} {} of the model a document",
        if labels == 1 { "label" } else { "labels" },
        report.passes,
        if report.passes == 1 { "pass" } else { "passes" },
    ))?;
    let mut table = output::table(&["tokens", "words"]);
    for (tokens, words) in &report.words_by_tokens {
        table.add_row(vec![tokens.to_string(), words.join(" ")]);
    }
    output::line(table)?;
    for unknown in &report.out_of_vocabulary {
        output::line(format_args!(
            "out of vocabulary, left out: {} of {} ({})",
            unknown.word,
            unknown.label,
            unknown.tokens.join(" ")
        ))?;
    }
    for collision in &report.collisions {
        output::line(format_args!(
            "same tokens: {} of {} and {} of {} ({})",
            collision.first.1,
            collision.first.0,
            collision.second.1,
            collision.second.0,
            collision.tokens.join(" ")
        ))?;
    }
    Ok(())
}

fn folder(settings: &Settings) -> Option<&std::path::Path> {
    let folder = settings.tagging.taxonomies_dir.as_str();
    (!folder.is_empty()).then(|| std::path::Path::new(folder))
}
