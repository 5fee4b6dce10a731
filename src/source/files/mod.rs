//! Documents from files: JSON lines, CSV, Parquet, gzip and zstd, folders; bounded and resumable.
//!
//! Knows the formats and how far a job has come; must not know what a document is. Each file is a
//! partition of its own (topic `file:PATH`, no order of age between files), a record's offset its line
//! or row.

mod cells;
mod error;
mod input;
mod job;
mod parquet;
mod read;
mod settings;
mod split;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use jiff::tz::TimeZone;
use parking_lot::Mutex;

pub use error::FilesError;
pub use settings::BackfillSettings;

use super::{
    CommitMode, CommitOffset, Events, RecordFault, Source, SourceError, SourceEvent, SourceRecord,
};
use crate::document::{Generation, RecordPosition, TopicPartition};
use input::Input;
use job::Job;
use read::{FileRecord, ReadOptions, Records};

/// Events that wait for the reader; with the two bounds below this bounds the memory.
const CHANNEL_EVENTS: usize = 2;

/// Records of one event at most.
const BATCH_RECORDS: usize = 256;

/// Bytes of one event's records at most, but for its last record.
const BATCH_BYTES: usize = 1 << 20;

/// Files are assigned once.
const GENERATION: Generation = Generation(1);

/// What a job over files reads, and how.
#[derive(Debug, Clone)]
pub struct FilesOptions {
    /// Files and folders.
    pub inputs: Vec<PathBuf>,
    /// Name of the job: an unfinished one of the same name, inputs and fingerprint is gone on with.
    pub job: String,
    /// What the documents are made into; another one makes another job.
    pub fingerprint: String,
    /// Largest record in bytes; of longer ones one byte more is delivered, so that decoding refuses them.
    pub max_value_bytes: usize,
    /// Where the age of a record stands, and where progress is kept.
    pub settings: BackfillSettings,
    /// Zone of times that name none, as decoding reads them.
    pub time_zone: TimeZone,
    /// When the job begins, where it is a new one.
    pub now: jiff::Timestamp,
}

/// How far the reading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesProgress {
    /// Bytes read of the files, compressed as they are.
    pub bytes_done: u64,
    /// Bytes of all files of the job that were unfinished at its start.
    pub bytes_total: u64,
    /// Files read to their end in this run.
    pub files_done: u64,
    /// Files of the job that were unfinished at its start.
    pub files_total: u64,
    /// Records delivered in this run.
    pub records: u64,
    /// Records that an earlier run of the same job has done.
    pub resumed_records: u64,
}

/// A bounded source of the records of files.
#[derive(Debug)]
pub struct FilesSource {
    events: Receiver<SourceEvent>,
    // Keeps the channel open after the thread has ended.
    _keep_open: Sender<SourceEvent>,
    shared: Arc<Shared>,
    /// Dropped to stop the thread, which may be waiting for room in the channel.
    running: Mutex<Option<Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    resumed_records: u64,
    bytes_total: u64,
    files_total: u64,
}

#[derive(Debug)]
struct Shared {
    job: Mutex<Job>,
    bytes_done: Arc<AtomicU64>,
    files_done: AtomicU64,
    records: AtomicU64,
    stopped: AtomicBool,
}

impl FilesSource {
    /// Finds the files, begins or resumes the job, and starts to read on a thread of its own.
    ///
    /// # Errors
    /// When an input is missing, unreadable or of unknown format, or the job's state cannot be kept or
    /// is in use by another process. A file that turns out to be damaged fails later, as an event.
    pub fn start(options: &FilesOptions) -> Result<Self, FilesError> {
        let inputs = input::find(&options.inputs)?;
        let state_dir = &options.settings.state_dir;
        let (name, fingerprint) = (&options.job, &options.fingerprint);
        let job = Job::open(state_dir, name, fingerprint, &inputs, options.now)?;
        let resumed_records = job.resumed_records();
        let unfinished = job.unfinished();
        let of_unfinished = |(index, _, _): &(usize, TopicPartition, i64)| {
            inputs.get(*index).map_or(0, |input| input.bytes)
        };
        let bytes_total = unfinished.iter().map(of_unfinished).sum();
        let files_total = unfinished.len() as u64;
        let (sender, events) = crossbeam_channel::bounded(CHANNEL_EVENTS);
        let (running, stop) = crossbeam_channel::bounded(0);
        let shared = Arc::new(Shared {
            job: Mutex::new(job),
            bytes_done: Arc::new(AtomicU64::new(0)),
            files_done: AtomicU64::new(0),
            records: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let delivery = Delivery {
            inputs,
            options: ReadOptions {
                max_value_bytes: options.max_value_bytes,
                timestamp_field: options.settings.timestamp_field.clone(),
                time_zone: options.time_zone.clone(),
            },
            events: sender.clone(),
            stop,
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new()
            .name("files".to_owned())
            .spawn(move || delivery.run(unfinished))
            .map_err(|error| FilesError::Read {
                path: PathBuf::from("a thread to read with"),
                reason: error.to_string(),
            })?;
        Ok(Self {
            events,
            _keep_open: sender,
            shared,
            running: Mutex::new(Some(running)),
            thread: Mutex::new(Some(thread)),
            resumed_records,
            bytes_total,
            files_total,
        })
    }

    /// How far the reading has come.
    pub fn progress(&self) -> FilesProgress {
        FilesProgress {
            bytes_done: self
                .shared
                .bytes_done
                .load(Ordering::Relaxed)
                .min(self.bytes_total),
            bytes_total: self.bytes_total,
            files_done: self.shared.files_done.load(Ordering::Relaxed),
            files_total: self.files_total,
            records: self.shared.records.load(Ordering::Relaxed),
            resumed_records: self.resumed_records,
        }
    }

    /// What makes it the same job, in one text: name, fingerprint and files.
    pub fn job_id(&self) -> String {
        self.shared.job.lock().id()
    }

    /// Whether everything of all files is committed; then the next start of the job begins anew.
    pub fn is_finished(&self) -> bool {
        self.shared.job.lock().is_finished()
    }
}

impl Source for FilesSource {
    fn events(&self) -> Events {
        Events::in_order(self.events.clone())
    }

    fn version_order(&self, partition: &TopicPartition) -> i64 {
        self.shared.job.lock().version_order(partition)
    }

    fn commit(&self, offsets: &[CommitOffset], _: CommitMode) -> Result<(), SourceError> {
        let mut job = self.shared.job.lock();
        for offset in offsets
            .iter()
            .filter(|offset| offset.generation == GENERATION)
        {
            job.commit(&offset.partition, offset.next_offset);
        }
        // A full disk may be emptied: the next tick tries again.
        job.save()
            .map_err(|error| SourceError::Transient(error.to_string()))
    }

    fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.running.lock().take();
    }

    fn close(&self) {
        self.stop();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads files ended with a panic");
        }
        if let Err(error) = self.shared.job.lock().save() {
            tracing::error!(%error, "the progress of the job was not saved");
        }
    }
}

impl Drop for FilesSource {
    fn drop(&mut self) {
        self.close();
    }
}

/// The reading thread.
struct Delivery {
    inputs: Vec<Input>,
    options: ReadOptions,
    events: Sender<SourceEvent>,
    stop: Receiver<()>,
    shared: Arc<Shared>,
}

/// The source was stopped.
struct Stopped;

impl Delivery {
    fn run(self, files: Vec<(usize, TopicPartition, i64)>) {
        // An early end is a stop: nobody waits for more.
        let _ = self.deliver(files);
    }

    fn deliver(&self, files: Vec<(usize, TopicPartition, i64)>) -> Result<(), Stopped> {
        let partitions: Vec<_> = files
            .iter()
            .map(|(_, partition, _)| partition.clone())
            .collect();
        if !partitions.is_empty() {
            self.send(SourceEvent::Assigned {
                partitions,
                generation: GENERATION,
            })?;
        }
        for (index, partition, first) in files {
            let Some(input) = self.inputs.get(index) else {
                continue;
            };
            match self.deliver_file(input, &partition, first)? {
                Ok(end) => {
                    self.shared.job.lock().ended(index, end);
                    self.shared.files_done.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return self.send(SourceEvent::Failed(error.into())),
            }
        }
        self.send(SourceEvent::Ended)
    }

    /// Delivers one file; the answer is the offset after its last record.
    fn deliver_file(
        &self,
        input: &Input,
        partition: &TopicPartition,
        first: i64,
    ) -> Result<Result<i64, FilesError>, Stopped> {
        let opened = Records::open(input, first, &self.options, &self.shared.bytes_done);
        let mut records = match opened {
            Ok(records) => records,
            Err(error) => return Ok(Err(error)),
        };
        let mut end = first;
        let mut batch = Vec::new();
        let mut bytes = 0;
        let outcome = loop {
            let record = match records.next() {
                Ok(Some(record)) => record,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            end = record.index + 1;
            bytes += record.value.len();
            batch.push(source_record(record, partition));
            if batch.len() >= BATCH_RECORDS || bytes >= BATCH_BYTES {
                self.send_records(&mut batch)?;
                bytes = 0;
            }
        };
        // What was read before an error is sound.
        self.send_records(&mut batch)?;
        Ok(outcome.map(|()| end))
    }

    fn send_records(&self, batch: &mut Vec<SourceRecord>) -> Result<(), Stopped> {
        if batch.is_empty() {
            return Ok(());
        }
        let records = batch.len() as u64;
        self.send(SourceEvent::Records(std::mem::take(batch)))?;
        self.shared.records.fetch_add(records, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for room in the channel, or for the stop.
    fn send(&self, event: SourceEvent) -> Result<(), Stopped> {
        if self.shared.stopped.load(Ordering::Acquire) {
            return Err(Stopped);
        }
        crossbeam_channel::select! {
            send(self.events, event) -> sent => sent.map_err(|_| Stopped),
            recv(self.stop) -> _ => Err(Stopped),
        }
    }
}

fn source_record(record: FileRecord, partition: &TopicPartition) -> SourceRecord {
    SourceRecord {
        position: RecordPosition {
            partition: partition.clone(),
            offset: record.index,
        },
        generation: GENERATION,
        timestamp_ms: record.timestamp_ms,
        key: None,
        value: Some(record.value),
        headers: Vec::new(),
        fault: record.fault.map(RecordFault::NotOneValue),
    }
}

#[cfg(test)]
mod tests;
