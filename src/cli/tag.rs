//! `tag`: texts from the arguments or, one a line, from standard input; an answer for each, in order.

use std::io::{BufRead, BufReader, Read};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::tag_all::tag_all;
use crate::assemble::Engine;
use crate::batch::BatchSettings;
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::score::{Tagging, TopicScore};
use crate::settings::Settings;

/// Lines tagged at once at most: enough for batches of like length, little enough to stay in memory.
const CHUNK_LINES: usize = 512;

/// Bytes tagged at once at most; a longer single line passes alone.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// Bytes read at once.
const READ_BYTES: usize = 1024 * 1024;

/// Characters of a text in the table.
const TEXT_CHARACTERS: usize = 40;

/// Tag texts from the arguments or, one a line, from standard input.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Texts to tag; none: one text a line from standard input, blank lines included.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Print one JSON object a text.
    #[arg(long)]
    json: bool,
    /// Add the embedding to the JSON objects.
    #[arg(long, requires = "json")]
    embedding: bool,
    /// Labels to give, the most probable first; 0: all of them.
    #[arg(long, value_name = "N")]
    top: Option<usize>,
}

/// The answer for one text.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    id: usize,
    topic: &'a str,
    probability: f32,
    topics: &'a [TopicScore],
    #[serde(skip_serializing_if = "is_false")]
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<&'a [f32]>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_false(value: &bool) -> bool {
    !value
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let mut settings = settings.clone();
    if let Some(top) = arguments.top {
        settings.tagging.top_k = top;
    }
    let mut engine = Engine::load(&settings)?;
    if arguments.texts.is_empty() {
        return tag_lines(
            &mut engine,
            &settings.batch,
            arguments,
            BufReader::with_capacity(READ_BYTES, std::io::stdin()),
        );
    }
    let texts: Vec<Result<String, String>> = arguments.texts.iter().cloned().map(Ok).collect();
    answer(&mut engine, &settings.batch, arguments, 1, &texts)
}

fn tag_lines(
    engine: &mut Engine,
    batch: &BatchSettings,
    arguments: &Arguments,
    mut input: BufReader<impl Read>,
) -> Result<(), Failure> {
    let mut first = 1;
    loop {
        let chunk = read_chunk(&mut input)?;
        if chunk.is_empty() {
            return Ok(());
        }
        answer(engine, batch, arguments, first, &chunk)?;
        first += chunk.len();
    }
}

/// Reads what is at hand: a full chunk from a file, single lines from somebody who types.
fn read_chunk(input: &mut BufReader<impl Read>) -> Result<Vec<Result<String, String>>, Failure> {
    let unreadable =
        |error: std::io::Error| Failure::failed(format!("standard input cannot be read: {error}"));
    let (mut lines, mut bytes) = (Vec::new(), 0);
    while lines.len() < CHUNK_LINES && bytes < CHUNK_BYTES {
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            break;
        }
        bytes += line.len();
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
        }
        lines.push(
            String::from_utf8(line).map_err(|error| format!("the text is not UTF-8: {error}")),
        );
        // Reading on could wait for somebody who types: the rest belongs to the next chunk.
        if !input.buffer().contains(&b'\n') {
            break;
        }
    }
    Ok(lines)
}

fn answer(
    engine: &mut Engine,
    batch: &BatchSettings,
    arguments: &Arguments,
    first: usize,
    texts: &[Result<String, String>],
) -> Result<(), Failure> {
    let readable: Vec<&str> = texts
        .iter()
        .map(|text| text.as_deref().unwrap_or(""))
        .collect();
    let tagged = tag_all(engine, batch, &readable, |_| {})?;
    let outcomes: Vec<(usize, Result<Tagging, String>)> = texts
        .iter()
        .zip(tagged)
        .enumerate()
        .map(|(index, (text, outcome))| match text {
            Ok(_) => (first + index, outcome.map_err(|error| error.to_string())),
            Err(reason) => (first + index, Err(reason.clone())),
        })
        .collect();
    if arguments.json {
        outcomes
            .iter()
            .try_for_each(|(id, outcome)| answer_json(*id, outcome, arguments.embedding))
    } else {
        answer_table(&readable, &outcomes)
    }
}

fn answer_json(
    id: usize,
    outcome: &Result<Tagging, String>,
    embedding: bool,
) -> Result<(), Failure> {
    match outcome {
        Ok(tagging) => output::json(&Answer {
            id,
            topic: &tagging.topic,
            probability: tagging.probability,
            topics: &tagging.topics,
            truncated: tagging.truncated,
            embedding: embedding.then_some(tagging.embedding.as_slice()),
        }),
        Err(error) => output::json(&json!({ "id": id, "error": error })),
    }
}

fn answer_table(
    texts: &[&str],
    outcomes: &[(usize, Result<Tagging, String>)],
) -> Result<(), Failure> {
    let mut table = output::table(&["", "text", "topic", "probability", "next"]);
    for (text, (id, outcome)) in texts.iter().zip(outcomes) {
        let text = output::shortened(text, TEXT_CHARACTERS);
        match outcome {
            Ok(tagging) => {
                let next: Vec<String> = tagging
                    .topics
                    .iter()
                    .filter(|score| score.label != tagging.topic)
                    .map(|score| {
                        format!(
                            "{} {}",
                            score.label,
                            output::percent(f64::from(score.probability))
                        )
                    })
                    .collect();
                table.add_row(vec![
                    id.to_string(),
                    text,
                    tagging.topic.clone(),
                    output::percent(f64::from(tagging.probability)),
                    next.join(", "),
                ]);
            }
            Err(error) => {
                table.add_row(vec![
                    id.to_string(),
                    text,
                    "-".to_owned(),
                    "-".to_owned(),
                    error.clone(),
                ]);
            }
        }
    }
    output::line(table)
}
