//! The command line: one file a command. Settings are read here, once; stages get built values.
//!
//! Results go to standard output, logs and progress to standard error. Exit codes: 0 done, 1 failed,
//! 2 wrong usage or configuration.

mod backfill;
mod bench;
mod configuration;
mod dead_letters;
mod demo;
mod doctor;
mod evaluate;
mod migrate;
mod run;
mod search;
mod tag;
mod tag_all;
mod taxonomy;
mod terminal;
mod whiten;
mod worker;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use worker::vitals;

use crate::settings::{Origins, Settings};
use crate::telemetry::{LogSettings, init_logging};
use terminal::failure::Failure;

/// Tags a stream of Chinese documents with TCBert and keeps their vectors in Qdrant.
#[derive(Debug, Parser)]
#[command(name = "tcbert-worker", version, about, propagate_version = true)]
struct CommandLine {
    /// Settings file (TOML), read after the built-in defaults and before TCBERT__SECTION__KEY variables.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Work(Work),
    /// Show, check and write the configuration.
    Config(configuration::Arguments),
}

/// What needs a configuration without faults.
#[derive(Debug, Subcommand)]
enum Work {
    /// Consume documents from Kafka until told to stop.
    Run(run::Arguments),
    /// Tag a bounded part of the topics, or files; ends by itself and resumes where it was.
    Backfill(backfill::Arguments),
    /// Show the whole pipeline on an embedded broker and store with sample documents.
    Demo(demo::Arguments),
    /// Tag texts from the arguments or, one a line, from standard input.
    Tag(tag::Arguments),
    /// Find the documents nearest to a query.
    Search(search::Arguments),
    /// Measure accuracy on a labelled data set.
    Evaluate(evaluate::Arguments),
    /// Inspect taxonomies.
    Taxonomy(taxonomy::Arguments),
    /// Create or change the collection as `migrations/` declares it.
    Migrate(migrate::Arguments),
    /// List what could not be processed, or replay it.
    DeadLetters(dead_letters::Arguments),
    /// Fit and inspect a whitening of the embeddings.
    Whiten(whiten::Arguments),
    /// Measure the throughput of each stage and of the whole.
    Bench(bench::Arguments),
    /// Check configuration, broker, store, model and device, and say what to fix.
    Doctor(doctor::Arguments),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // Help and version are answers, not errors; clap knows which stream each belongs to.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match execute(command_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(command_line: CommandLine) -> Result<(), Failure> {
    let origins = Origins::of_process(command_line.config)?;
    match command_line.command {
        Command::Config(arguments) => configuration::execute(&origins, &arguments),
        Command::Work(work) => carry_out(work, &origins),
    }
}

fn carry_out(work: Work, origins: &Origins) -> Result<(), Failure> {
    let mut settings = Settings::load(origins)?;
    // A backfill tells a log how far it is; who sits before it sees a bar.
    let serves = match &work {
        Work::Run(_) => true,
        Work::Backfill(_) => !std::io::stderr().is_terminal(),
        _ => false,
    };
    if !serves && settings.log == LogSettings::default() {
        // Commands for people show progress and tables; what is ordinary need not be told.
        "warn".clone_into(&mut settings.log.level);
    }
    init_logging(&settings.log).map_err(Failure::usage)?;
    for name in &origins.strangers {
        tracing::warn!(
            "the environment variable {name} is no setting and is ignored; settings begin with TCBERT__"
        );
    }
    match work {
        Work::Run(arguments) => run::execute(&settings, &arguments),
        Work::Backfill(arguments) => backfill::execute(&settings, &arguments),
        Work::DeadLetters(arguments) => dead_letters::execute(&settings, &arguments),
        Work::Whiten(arguments) => whiten::execute(&settings, &arguments),
        Work::Demo(arguments) => demo::execute(settings, &arguments),
        Work::Tag(arguments) => tag::execute(&settings, &arguments),
        Work::Search(arguments) => search::execute(&settings, &arguments),
        Work::Evaluate(arguments) => evaluate::execute(settings, &arguments),
        Work::Taxonomy(arguments) => taxonomy::execute(&settings, &arguments),
        Work::Migrate(arguments) => migrate::execute(&settings, &arguments),
        Work::Bench(arguments) => bench::execute(settings, &arguments),
        Work::Doctor(arguments) => doctor::execute(&settings, &arguments),
    }
}
