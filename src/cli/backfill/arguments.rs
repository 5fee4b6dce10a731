//! The command line of `backfill`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Tag a bounded part of the topics, or files; ends by itself and resumes where it was.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["from", "to", "offsets", "input"]))]
pub(in crate::cli) struct Arguments {
    /// From the first record that is not older than this time: 2026-11-23T00:00:00Z, 2026-11-23 (in
    /// decode.time_zone), or seconds or milliseconds since 1970.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["offsets", "input"])]
    pub(super) from: Option<String>,
    /// Up to the first record that is not older than this time; left out: up to the end that the
    /// topics have when the job starts.
    #[arg(long, value_name = "TIME", conflicts_with_all = ["offsets", "input"])]
    pub(super) to: Option<String>,
    /// These offsets: [TOPIC:]PARTITION:FROM..TO, several with commas between them; TO is not
    /// included, FROM or TO may be left out.
    #[arg(long, value_name = "SPEC", conflicts_with = "input")]
    pub(super) offsets: Option<String>,
    /// Files or folders: .jsonl, .ndjson, .json, .csv, .tsv (each also .gz or .zst) or .parquet.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(super) input: Vec<PathBuf>,
    /// Name of the job; with what is read and how it is tagged it makes the job that is resumed.
    /// 1 to 64 of A to Z, a to z, 0 to 9, `-`, `_` and `.`.
    #[arg(long, value_name = "NAME", default_value = "backfill", value_parser = job_name)]
    pub(super) job: String,
    /// Leave a job over topics alone that is finished already, instead of starting it again.
    #[arg(long, conflicts_with = "input")]
    pub(super) once: bool,
    /// Go on where records of the range have expired since it was decided on, and log what is gone.
    #[arg(long, conflicts_with = "input")]
    pub(super) accept_gap: bool,
    /// Do not read, behind the range, the deletions up to where the live group is. Documents of the range
    /// that were deleted longer ago than store.tombstone_retention_hours come back.
    #[arg(long, conflicts_with = "input")]
    pub(super) skip_later_deletions: bool,
    /// Continue an unfinished job on a store that lacks what the job has done before.
    #[arg(long)]
    pub(super) accept_empty_store: bool,
    /// Build no search graph while the collection is filled; it is switched on again at the end, however that
    /// comes. Searches read all new vectors meanwhile.
    #[arg(long)]
    pub(super) bulk: bool,
    /// Documents a second at most.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(super) max_docs_per_second: Option<f64>,
    /// Slow down while the live group (kafka.group_id) is behind.
    #[arg(long)]
    pub(super) yield_to_live: bool,
    /// Records that the live group may be behind before the backfill slows down.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        requires = "yield_to_live"
    )]
    pub(super) yield_lag: u64,
    /// Where records go that cannot be processed: the dead-letter topic, or a file beside the state
    /// of the job. Left out: the topic for a range of topics, the file for files.
    #[arg(long, value_name = "WHERE")]
    pub(super) dead_letters: Option<DeadLettersTo>,
    /// Exit with 1 where records went to the dead letters.
    #[arg(long)]
    pub(super) fail_on_dead_letters: bool,
    /// Print one JSON object that says what was done.
    #[arg(long)]
    pub(super) json: bool,
}

/// Where dead letters go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DeadLettersTo {
    /// The topic `kafka.dead_letter_topic`.
    Kafka,
    /// A file of JSON lines in `backfill.state_dir`.
    File,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "has to be a number above 0".to_owned())
}

/// The name of a job is part of names of files and of a consumer group.
fn job_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = (1..=64).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('.');
    fits.then(|| text.to_owned()).ok_or_else(|| {
        "has to be 1 to 64 of A to Z, a to z, 0 to 9, `-`, `_` and `.`, and not to begin with `.`"
            .to_owned()
    })
}
