//! `dead-letters`: what could not be processed, why and where it came from; sends it home again.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::kafka::{
    DeadLetterFilter, ReplayOptions, ReplayReport, Rest, StoredDeadLetter, replay_dead_letters,
    visit_dead_letters,
};
use crate::settings::Settings;

/// Characters of a message in the table.
const MESSAGE_CHARACTERS: usize = 60;
/// Characters of a key in the table.
const KEY_CHARACTERS: usize = 24;
/// Letters that a table shows unless told otherwise.
const TABLE_LETTERS: usize = 100;

/// List what could not be processed, or send it home again.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show letters: why, and where they came from.
    List(List),
    /// Send records to the topic and partition they came from, if that is one of kafka.topic or
    /// named by --topic; the dead letters stay.
    Replay(Replay),
}

#[derive(Debug, Args)]
struct Filter {
    /// Only records of this topic.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only what this stage refused, such as decode, model or store.
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Only this reason, such as invalid_json.
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    /// Only the record with this key.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only messages that contain this text.
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl Filter {
    fn build(&self) -> DeadLetterFilter {
        DeadLetterFilter {
            topic: self.topic.clone(),
            stage: self.stage.clone(),
            class: self.class.clone(),
            key: self.key.clone(),
            message: self.message.clone(),
            limit: self.limit,
        }
    }
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    filter: Filter,
    /// Print one JSON object a letter, its value included.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Replay {
    #[command(flatten)]
    filter: Filter,
    /// Say what would be sent, and send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Send into compacted topics as well, where a replayed record takes the place of newer ones.
    #[arg(long)]
    into_compacted: bool,
    /// Print one JSON object that says what was done.
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.action {
        Action::List(list) => show(settings, list),
        Action::Replay(replay) => send_home(settings, replay),
    }
}

fn show(settings: &Settings, arguments: &List) -> Result<(), Failure> {
    let filter = arguments.filter.build();
    if arguments.json {
        let mut failure = None;
        visit_dead_letters(&settings.kafka, &filter, |letter| {
            match output::json(&to_json(&letter)) {
                Ok(()) => std::ops::ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    std::ops::ControlFlow::Break(())
                }
            }
        })
        .map_err(Failure::failed)?;
        return failure.map_or(Ok(()), Err);
    }
    let most = filter.limit.unwrap_or(TABLE_LETTERS);
    let mut table = output::table(&["from", "key", "stage", "why", "message", "time"]);
    let mut count = 0_usize;
    let unbounded = DeadLetterFilter {
        limit: None,
        ..filter
    };
    visit_dead_letters(&settings.kafka, &unbounded, |letter| {
        count += 1;
        if count <= most {
            table.add_row(vec![
                letter.origin(),
                output::shortened(&letter.key_text(), KEY_CHARACTERS),
                letter.stage.clone(),
                letter.class.clone(),
                output::shortened(&letter.message, MESSAGE_CHARACTERS),
                time_of(&letter).unwrap_or_default(),
            ]);
        }
        std::ops::ControlFlow::Continue(())
    })
    .map_err(Failure::failed)?;
    if count == 0 {
        return output::line(format!(
            "no dead letters in {}",
            settings.kafka.dead_letter_topic
        ));
    }
    output::line(table)?;
    if count > most {
        output::line(format!(
            "{most} of {count}; --limit N shows more, --json all"
        ))?;
    }
    Ok(())
}

fn send_home(settings: &Settings, arguments: &Replay) -> Result<(), Failure> {
    let mut left = Vec::new();
    let report = replay_dead_letters(
        &settings.kafka,
        &settings.dead_letter,
        &arguments.filter.build(),
        ReplayOptions {
            dry_run: arguments.dry_run,
            into_compacted: arguments.into_compacted,
        },
        |letter, outcome| {
            if let Err(reason) = outcome {
                left.push((letter.position.to_string(), reason));
            }
        },
    )
    .map_err(Failure::failed)?;
    let ReplayReport {
        wanted,
        sent,
        left: count,
    } = report;
    if arguments.json {
        let left: Vec<Value> = left
            .iter()
            .map(|(letter, reason)| json!({ "letter": letter, "reason": reason }))
            .collect();
        let dry_run = arguments.dry_run;
        output::json(&json!({ "wanted": wanted, "sent": sent, "dry_run": dry_run, "left": left }))?;
    } else {
        for (letter, reason) in &left {
            output::line(format!("{letter} stays: {reason}"))?;
        }
        output::line(if arguments.dry_run {
            format!("{} of {wanted} letters would be sent home", wanted - count)
        } else {
            format!("{sent} of {wanted} letters were sent home")
        })?;
    }
    if count > 0 {
        return Err(Failure::failed(format!(
            "{count} of {wanted} letters cannot be sent home"
        )));
    }
    Ok(())
}

fn time_of(letter: &StoredDeadLetter) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(letter.timestamp_ms?).ok()?;
    Some(time.to_string())
}

fn to_json(letter: &StoredDeadLetter) -> Value {
    let text = |bytes: &Option<Vec<u8>>| {
        bytes
            .as_ref()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    let place = |position: &crate::document::RecordPosition| {
        json!({
            "topic": &*position.partition.topic,
            "partition": position.partition.partition,
            "offset": position.offset,
        })
    };
    json!({
        "letter": place(&letter.position),
        "from": letter.origin.as_ref().map(place),
        "stage": letter.stage,
        "class": letter.class,
        "message": letter.message,
        "connector": letter.connector,
        "time": time_of(letter),
        "key": text(&letter.key),
        "value": text(&letter.value),
        "headers": letter.headers.iter().map(|header| {
            json!({ "name": header.name, "value": text(&header.value) })
        }).collect::<Vec<_>>(),
        "cut": letter.cut.as_ref().map(|cut| {
            match &cut.rest {
                Rest::Spooled(file) => json!({ "value_bytes": cut.value_bytes, "spool_file": file }),
                Rest::Omitted(sha256) => json!({ "value_bytes": cut.value_bytes, "value_sha256": sha256 }),
            }
        }),
    })
}
