//! The two kinds of work that a backfill does, topics and files, behind one face: start, how far,
//! finished.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::arguments::Arguments;
use crate::cli::terminal::failure::Failure;
use crate::kafka::{
    CountStoredBeyond, KafkaSource, RangeJob, RangeProgress, RangeSpec, RangeStart, parse_time,
};
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

/// A job that is known and has not begun: nothing of it is committed.
pub(super) enum Prepared {
    Range(Box<RangeStart>),
    Files(Arc<FilesSource>),
}

impl Prepared {
    /// Looks how far the job has come.
    pub(super) fn open(
        wanted: Wanted,
        name: &str,
        once: bool,
        later_deletions: bool,
        fingerprint: &str,
        settings: &Settings,
    ) -> Result<Self, Failure> {
        match wanted {
            Wanted::Range(range) => {
                let job = RangeJob {
                    name: name.to_owned(),
                    range,
                    fingerprint: fingerprint.to_owned(),
                    once,
                    later_deletions,
                };
                let start = RangeStart::open(&settings.kafka, &job).map_err(Failure::failed)?;
                Ok(Self::Range(Box::new(start)))
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
                // It reads ahead, and nothing of it counts before the pipeline runs.
                let source = FilesSource::start(&options).map_err(Failure::failed)?;
                Ok(Self::Files(Arc::new(source)))
            }
        }
    }

    /// What makes it the same job, in one text.
    pub(super) fn id(&self) -> String {
        match self {
            Self::Range(start) => start.group().to_owned(),
            Self::Files(source) => source.job_id(),
        }
    }

    /// Whether it relies on what an earlier run of the job has written.
    pub(super) fn relies_on_earlier_work(&self) -> bool {
        match self {
            Self::Range(start) => start.relies_on_earlier_work(),
            Self::Files(source) => source.progress().resumed_records > 0,
        }
    }

    /// Whether the job is finished already and that is enough.
    pub(super) fn is_left_alone(&self) -> bool {
        match self {
            Self::Range(start) => start.is_left_alone(),
            Self::Files(_) => false,
        }
    }

    /// Starts to read; `None` where the job is finished already and that is enough.
    pub(super) fn start(self, stored: CountStoredBeyond) -> Result<Option<Work>, Failure> {
        match self {
            Self::Range(start) => {
                let source = start.start(Some(stored)).map_err(Failure::failed)?;
                Ok(source.map(|source| Work::Range(Arc::new(source))))
            }
            Self::Files(source) => Ok(Some(Work::Files(source))),
        }
    }
}

impl Work {
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

    /// How far a job over topics is; `None` for files.
    pub(super) fn range_progress(&self) -> Option<RangeProgress> {
        match self {
            Self::Range(source) => source.range_progress(),
            Self::Files(_) => None,
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
                            "deletions_to": position.last,
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
                    "skipped": source.counters().skipped,
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
