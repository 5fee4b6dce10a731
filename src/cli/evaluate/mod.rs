//! `evaluate`: accuracy and macro F1 on a labelled data set, by the code that runs in production.

mod data;
mod metrics;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::tag_all::tag_all;
use crate::assemble::Engine;
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::settings::Settings;
use data::{Example, read_examples};
use metrics::{LabelScore, Scores};

/// Labels shown of the most frequent confusions.
const CONFUSIONS: usize = 5;

/// Measure accuracy on a labelled data set.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// JSON lines (`sentence` or `content` or `title` and `text`; `label`, `label_desc`, `label_des` or
    /// `topic`), a JSON array of such objects, or lines of text, tab and label.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Taxonomy: a name (news, tnews, csldcp, iflytek, thucnews) or a file.
    #[arg(long, value_name = "NAME")]
    taxonomy: Option<String>,
    /// Evaluate only the first N documents.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    documents: usize,
    accuracy: f64,
    macro_f1: f64,
    taxonomy: String,
    model: String,
    precision: String,
    truncated: usize,
    unknown_tokens: usize,
    unknown_share: f64,
    seconds: f64,
    documents_per_second: f64,
    labels: Vec<LabelScore>,
}

pub(super) fn execute(mut settings: Settings, arguments: &Arguments) -> Result<(), Failure> {
    if let Some(taxonomy) = &arguments.taxonomy {
        settings.tagging.taxonomy.clone_from(taxonomy);
    }
    let mut engine = Engine::load(&settings)?;
    let mut examples =
        read_examples(&arguments.data, engine.taxonomy()).map_err(Failure::failed)?;
    examples.truncate(arguments.limit.map_or(usize::MAX, NonZeroUsize::get));

    let bar = output::bar(examples.len() as u64, "evaluating");
    let started = Instant::now();
    let texts: Vec<&str> = examples
        .iter()
        .map(|example| example.text.as_str())
        .collect();
    let tagged = tag_all(&mut engine, &settings.batch, &texts, |done| {
        bar.set_position(done as u64);
    })?;
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let pairs = examples.iter().zip(&tagged).map(|(example, outcome)| {
        // A text that cannot be tagged counts as a wrong answer, never as left out.
        let predicted = outcome
            .as_ref()
            .ok()
            .and_then(|tagging| engine.taxonomy().label_of_code(&tagging.topic));
        (example.label, predicted)
    });
    let scores = Scores::of(pairs, &engine.label_names());
    let manifest = engine.bundle().manifest();
    let unknown_tokens = tagged
        .iter()
        .flatten()
        .map(|tagging| tagging.unknown_tokens)
        .sum();
    let tokens: usize = texts
        .iter()
        .map(|text| engine.tagger().encode(text).ids.len())
        .sum();
    let report = Report {
        documents: examples.len(),
        accuracy: scores.accuracy,
        macro_f1: scores.macro_f1,
        taxonomy: engine.taxonomy().name.clone(),
        model: manifest.name.clone(),
        precision: manifest.precision.as_str().to_owned(),
        truncated: tagged
            .iter()
            .flatten()
            .filter(|tagging| tagging.truncated)
            .count(),
        unknown_tokens,
        unknown_share: unknown_tokens as f64 / tokens.max(1) as f64,
        seconds,
        documents_per_second: examples.len() as f64 / seconds.max(f64::EPSILON),
        labels: scores.labels.clone(),
    };
    if arguments.json {
        output::json(&report)
    } else {
        show(&report, &scores, &examples)
    }
}

fn show(report: &Report, scores: &Scores, examples: &[Example]) -> Result<(), Failure> {
    let mut table = output::table(&[
        "topic",
        "documents",
        "precision",
        "recall",
        "F1",
        "most often taken for",
    ]);
    for label in &report.labels {
        table.add_row(vec![
            label.label.clone(),
            label.documents.to_string(),
            output::percent(label.precision),
            output::percent(label.recall),
            output::percent(label.f1),
            scores.confusions(&label.label, CONFUSIONS),
        ]);
    }
    output::line(table)?;
    output::line(format_args!(
        "{} documents, accuracy {}, macro F1 {} ({} {}, taxonomy {}); {} truncated, {} unknown tokens; {:.0} documents/s",
        examples.len(),
        output::percent(report.accuracy),
        output::percent(report.macro_f1),
        report.model,
        report.precision,
        report.taxonomy,
        report.truncated,
        output::percent(report.unknown_share),
        report.documents_per_second,
    ))
}
