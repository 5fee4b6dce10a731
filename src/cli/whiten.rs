//! `whiten`: fits a whitening of the embeddings on a sample of documents, and shows what a file holds.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde_json::json;

use super::tag_all::tag_all;
use crate::assemble::Engine;
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::decode::{Decoded, Decoder, compose_text};
use crate::score::{Whitening, WhiteningFit};
use crate::settings::Settings;
use crate::source::files::{BackfillSettings, FilesOptions, FilesSource};
use crate::source::{Source, SourceEvent, SourceRecord};

/// Texts embedded at once.
const CHUNK_TEXTS: usize = 1024;
/// How long the reader of files may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// Documents for each dimension below which a fit is told to be shaky.
const DOCUMENTS_A_DIMENSION: u64 = 4;

/// Fit and inspect a whitening of the embeddings.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fit a whitening on a sample, through the configured model, taxonomy and prompt.
    Fit(Fit),
    /// Show what a whitening file holds.
    Show(Show),
}

#[derive(Debug, Args)]
struct Fit {
    /// Documents as a backfill reads them (.jsonl, .csv, .parquet and so on), or a .txt file with one
    /// text a line.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// The file to write, for tagging.whitening.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// From 0 to 1: how far the covariance is drawn towards equal variance in all directions.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    shrinkage: f64,
    /// Documents at most.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Show {
    /// The whitening file.
    file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "has to be a number from 0 to 1".to_owned())
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.action {
        Action::Fit(fit) => execute_fit(settings, fit),
        Action::Show(show) => {
            let whitening = Whitening::load(&show.file).map_err(Failure::failed)?;
            tell(&show.file, &whitening, None, show.json)
        }
    }
}

/// Told before the work, not after it.
fn refuse_missing_folder(output: &Path) -> Result<(), Failure> {
    match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(Failure::usage(format!(
                "{} cannot be written: there is no folder {}",
                output.display(),
                folder.display()
            )))
        }
        _ => Ok(()),
    }
}

fn execute_fit(settings: &Settings, arguments: &Fit) -> Result<(), Failure> {
    let mut settings = settings.clone();
    // A whitening is fitted on plain embeddings, whatever the worker applies today.
    settings.tagging.whitening.clear();
    refuse_missing_folder(&arguments.output)?;
    let engine = Engine::load(&settings)?;
    let origin = engine.tagger().fingerprints().embedding.clone();
    let fit = WhiteningFit::new(engine.tagger().hidden_size()).map_err(Failure::failed)?;
    let mut sample = Sample {
        engine,
        fit,
        texts: Vec::new(),
        documents: 0,
        left_out: 0,
        limit: arguments.limit.unwrap_or(u64::MAX),
        bar: output::spinner("embedding the sample"),
        settings: &settings,
    };
    let is_text = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "txt");
    let (texts, files): (Vec<&PathBuf>, Vec<&PathBuf>) = arguments.data.iter().partition(is_text);
    for path in texts {
        sample.add_lines(path)?;
    }
    if !files.is_empty() {
        sample.add_documents(files.into_iter().cloned().collect())?;
    }
    sample.embed()?;
    sample.bar.finish_and_clear();
    let whitening = sample
        .fit
        .finish(arguments.shrinkage, &origin)
        .map_err(Failure::failed)?;
    let dimensions = whitening.dimensions() as u64;
    if whitening.documents() < dimensions * DOCUMENTS_A_DIMENSION {
        tracing::warn!(
            documents = whitening.documents(),
            dimensions,
            "the sample is small for so many dimensions; more documents or --shrinkage give better vectors"
        );
    }
    whitening.save(&arguments.output).map_err(Failure::failed)?;
    tell(
        &arguments.output,
        &whitening,
        Some(sample.left_out),
        arguments.json,
    )
}

/// The sample under way.
struct Sample<'a> {
    engine: Engine,
    fit: WhiteningFit,
    texts: Vec<String>,
    documents: u64,
    left_out: u64,
    limit: u64,
    bar: ProgressBar,
    settings: &'a Settings,
}

impl Sample<'_> {
    fn is_full(&self) -> bool {
        self.documents >= self.limit
    }

    fn add(&mut self, text: String) -> Result<(), Failure> {
        if text.trim().is_empty() {
            self.left_out += 1;
            return Ok(());
        }
        self.documents += 1;
        self.texts.push(text);
        if self.texts.len() >= CHUNK_TEXTS {
            self.embed()?;
        }
        Ok(())
    }

    fn embed(&mut self) -> Result<(), Failure> {
        let texts = std::mem::take(&mut self.texts);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for tagged in tag_all(&mut self.engine, &self.settings.batch, &texts, |_| {})? {
            match tagged {
                Ok(tagging) => self.fit.add(&tagging.embedding).map_err(Failure::failed)?,
                Err(_) => self.left_out += 1,
            }
        }
        self.bar
            .set_message(format!("{} documents embedded", self.documents));
        Ok(())
    }

    fn add_lines(&mut self, path: &Path) -> Result<(), Failure> {
        let unreadable = |error: std::io::Error| {
            Failure::failed(format!("{} cannot be read: {error}", path.display()))
        };
        for line in BufReader::new(File::open(path).map_err(unreadable)?).lines() {
            if self.is_full() {
                break;
            }
            let text: String = line.map_err(unreadable)?;
            let most = self.settings.decode.text_settings().max_chars;
            self.add(text.chars().take(most).collect())?;
        }
        Ok(())
    }

    /// Reads documents as a backfill does; a folder of its own keeps the state of no real job.
    fn add_documents(&mut self, inputs: Vec<PathBuf>) -> Result<(), Failure> {
        let folder = tempfile::tempdir()
            .map_err(|error| Failure::failed(format!("no temporary folder: {error}")))?;
        let source = FilesSource::start(&FilesOptions {
            inputs,
            job: "whiten".to_owned(),
            fingerprint: String::new(),
            max_value_bytes: self.settings.decode.max_value_bytes,
            settings: BackfillSettings {
                state_dir: folder.path().to_owned(),
                ..self.settings.backfill.clone()
            },
            time_zone: self.settings.decode.zone(),
            now: jiff::Timestamp::now(),
        })
        .map_err(Failure::failed)?;
        let decoder = Decoder::new(&self.settings.decode).map_err(Failure::usage)?;
        let events = source.events();
        while !self.is_full() {
            match events.recv_timeout(SILENCE) {
                Ok(SourceEvent::Records(records)) => self.add_records(&decoder, &records)?,
                Ok(SourceEvent::Failed(error)) => return Err(Failure::failed(error)),
                Ok(SourceEvent::Ended) => break,
                Ok(_) => {}
                Err(error) => return Err(Failure::failed(format!("no more was read: {error}"))),
            }
        }
        Ok(())
    }

    fn add_records(&mut self, decoder: &Decoder, records: &[SourceRecord]) -> Result<(), Failure> {
        let text = self.settings.decode.text_settings();
        for record in records {
            if self.is_full() {
                break;
            }
            match decoder.decode(record) {
                Ok(Decoded::Document(document)) => self.add(compose_text(&document, &text).text)?,
                Ok(Decoded::Tombstone(_)) | Err(_) => self.left_out += 1,
            }
        }
        Ok(())
    }
}

fn tell(
    file: &Path,
    whitening: &Whitening,
    left_out: Option<u64>,
    as_json: bool,
) -> Result<(), Failure> {
    if as_json {
        return output::json(&json!({
            "file": file.display().to_string(),
            "fingerprint": whitening.fingerprint(),
            "dimensions": whitening.dimensions(),
            "documents": whitening.documents(),
            "shrinkage": whitening.shrinkage(),
            "embedding_fingerprint": whitening.embeddings(),
            "left_out": left_out,
        }));
    }
    let mut table = output::table(&["whitening", ""]);
    table.add_row(vec!["file", &file.display().to_string()]);
    table.add_row(vec!["fingerprint", whitening.fingerprint()]);
    table.add_row(vec!["dimensions", &whitening.dimensions().to_string()]);
    table.add_row(vec!["documents", &whitening.documents().to_string()]);
    table.add_row(vec!["shrinkage", &whitening.shrinkage().to_string()]);
    table.add_row(vec!["fitted on embeddings", whitening.embeddings()]);
    if let Some(left_out) = left_out.filter(|count| *count > 0) {
        table.add_row(vec![
            "left out",
            &format!("{left_out} records without a text"),
        ]);
    }
    output::line(table)
}
