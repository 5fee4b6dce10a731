//! The two kinds of work that a backfill does, topics and files, behind one face: start, how far,
//! finished.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::failure::Failure;
use super::Arguments;
use crate::kafka::{CountStoredBeyond, KafkaSource, RangeJob, RangeSpec, parse_time};
use crate::settings::Settings;
use crate::source::Source;
use crate::source::files::{FilesOptions, FilesSource};

/// What is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Range(RangeSpec),
    Files(Vec<PathBuf>),
}

impl Wanted {
    /// What the command line asks for.
    pub(super) fn of(arguments: &Arguments, settings: &Settings) -> Result<Self, Failure> {
        if !arguments.input.is_empty() {
            return Ok(Self::Files(arguments.input.clone()));
        }
        if let Some(offsets) = &arguments.offsets {
            return RangeSpec::parse_offsets(offsets)
                .map(Self::Range)
                .map_err(Failure::usage);
        }
        let zone = settings.decode.zone();
        let time = |text: &Option<String>| {
            text.as_deref()
                .map(|text| parse_time(text, &zone))
                .transpose()
                .map_err(Failure::usage)
        };
        let (from_ms, to_ms) = (time(&arguments.from)?, time(&arguments.to)?);
        if from_ms.is_none() && to_ms.is_none() {
            return Err(Failure::usage(
                "say what to read: --from and/or --to with times, --offsets, or --input with files",
            ));
        }
        if let (Some(from), Some(to)) = (from_ms, to_ms)
            && to <= from
        {
            return Err(Failure::usage("--to has to be later than --from"));
        }
        Ok(Self::Range(RangeSpec::Times { from_ms, to_ms }))
    }
}

/// Work under way.
#[derive(Clone)]
pub(super) enum Work {
    Range(Arc<KafkaSource>),
    Files(Arc<FilesSource>),
}

/// How far the work is, in offsets or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Far {
    pub(super) done: u64,
    pub(super) total: u64,
}

impl Work {
    /// Starts to read; `None` where the job is finished already and that is enough.
    pub(super) fn start(
        wanted: Wanted,
        name: &str,
        once: bool,
        fingerprint: &str,
        settings: &Settings,
        stored: CountStoredBeyond,
    ) -> Result<Option<Self>, Failure> {
        match wanted {
            Wanted::Range(range) => {
                let job = RangeJob {
                    name: name.to_owned(),
                    range,
                    fingerprint: fingerprint.to_owned(),
                    once,
                };
                let source = KafkaSource::start_range(&settings.kafka, &job, Some(stored))
                    .map_err(Failure::failed)?;
                Ok(source.map(|source| Self::Range(Arc::new(source))))
            }
            Wanted::Files(inputs) => {
                let options = FilesOptions {
                    inputs,
                    job: name.to_owned(),
                    fingerprint: fingerprint.to_owned(),
                    max_value_bytes: settings.decode.max_value_bytes,
                    settings: settings.backfill.clone(),
                    time_zone: settings.decode.zone(),
                    now: jiff::Timestamp::now(),
                };
                let source = FilesSource::start(&options).map_err(Failure::failed)?;
                Ok(Some(Self::Files(Arc::new(source))))
            }
        }
    }

    /// For the pipeline.
    pub(super) fn source(&self) -> Arc<dyn Source> {
        match self {
            Self::Range(source) => source.clone(),
            Self::Files(source) => source.clone(),
        }
    }

    /// Whether an unfinished run is gone on with.
    pub(super) fn is_resumed(&self) -> bool {
        match self {
            Self::Range(source) => source
                .range_progress()
                .is_some_and(|progress| progress.resumed),
            Self::Files(source) => source.progress().resumed_records > 0,
        }
    }

    /// How far it is, given how many records this process has accounted for.
    pub(super) fn far(&self, accounted_for: u64) -> Far {
        match self {
            Self::Range(source) => {
                let progress = source.range_progress().unwrap_or_default();
                Far {
                    done: progress.done(),
                    total: progress.total(),
                }
            }
            Self::Files(source) => {
                let progress = source.progress();
                Far {
                    done: share(progress.bytes_done, accounted_for, progress.records),
                    total: progress.bytes_total,
                }
            }
        }
    }

    /// Whether everything is accounted for.
    pub(super) fn is_finished(&self) -> bool {
        match self {
            Self::Range(source) => source
                .range_progress()
                .is_some_and(|progress| progress.is_finished()),
            Self::Files(source) => source.is_finished(),
        }
    }

    /// What the report says of the source.
    pub(super) fn describe(&self) -> Value {
        match self {
            Self::Range(source) => {
                let progress = source.range_progress().unwrap_or_default();
                let partitions: Vec<Value> = progress
                    .positions
                    .iter()
                    .map(|position| {
                        json!({
                            "topic": &*position.partition.topic,
                            "partition": position.partition.partition,
                            "begin": position.span.begin,
                            "end": position.span.end,
                            "next": position.next,
                        })
                    })
                    .collect();
                json!({
                    "kind": "kafka",
                    "group": progress.group,
                    "offsets": progress.total(),
                    "offsets_done": progress.done(),
                    "offsets_done_at_start": progress.done_at_start,
                    "partitions": partitions,
                })
            }
            Self::Files(source) => {
                let progress = source.progress();
                json!({
                    "kind": "files",
                    "files": progress.files_total,
                    "files_done": progress.files_done,
                    "bytes": progress.bytes_total,
                    "records": progress.records,
                    "resumed_records": progress.resumed_records,
                })
            }
        }
    }
}

/// Bytes that are done, of those that were read: reading runs ahead of the model.
fn share(bytes: u64, done: u64, read: u64) -> u64 {
    let part = u128::from(bytes) * u128::from(done.min(read)) / u128::from(read.max(1));
    u64::try_from(part).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_ahead_is_not_done() {
        assert_eq!(share(1_000, 0, 0), 0);
        assert_eq!(share(1_000, 25, 100), 250);
        assert_eq!(share(1_000, 101, 100), 1_000);
        assert_eq!(share(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
    }
}
