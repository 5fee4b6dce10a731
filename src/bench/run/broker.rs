//! The broker of a measurement, in a process of its own, so that neither its memory nor its threads
//! are counted as the worker's. The parent asks over the child's standard input, one JSON line a
//! wish; the child answers with one JSON line each and ends with its input.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bench::corpus::{self, Mix};
use crate::bench::error::BenchError;
use crate::kafka::{EmbeddedBroker, SampleProducer, SampleRecord};

/// The hidden argument that makes a process the broker of another.
pub const SERVE_ARGUMENT: &str = "--serve-broker";

/// What the parent wants in a topic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bench) struct Fill {
    /// A topic that does not exist yet.
    pub(in crate::bench) topic: String,
    /// Its partitions; documents go round.
    pub(in crate::bench) partitions: i32,
    /// Name of the mix.
    pub(in crate::bench) mix: String,
    /// Documents.
    pub(in crate::bench) documents: usize,
    /// Seed of the documents.
    pub(in crate::bench) seed: u64,
    /// Documents a second; as fast as it goes where absent.
    pub(in crate::bench) per_second: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Brokers(String),
    Filled(usize),
    Failed(String),
}

/// Serves until standard input ends.
///
/// # Errors
/// When the broker cannot be started or the parent does not listen.
pub fn serve() -> Result<(), BenchError> {
    let broker = EmbeddedBroker::start(&[]).map_err(BenchError::setup)?;
    say(&Answer::Brokers(broker.bootstrap_servers()))?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(BenchError::setup)?;
        let outcome = serde_json::from_str(&line)
            .map_err(BenchError::setup)
            .and_then(|wish| fill(&broker, &wish));
        say(&match outcome {
            Ok(documents) => Answer::Filled(documents),
            Err(error) => Answer::Failed(error.to_string()),
        })?;
    }
    Ok(())
}

fn say(answer: &Answer) -> Result<(), BenchError> {
    let line = serde_json::to_string(answer).map_err(BenchError::setup)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(BenchError::setup)
}

fn fill(broker: &EmbeddedBroker, wish: &Fill) -> Result<usize, BenchError> {
    let mix =
        Mix::parse(&wish.mix).ok_or_else(|| BenchError::setup(format!("no mix {}", wish.mix)))?;
    broker
        .create_topic(&wish.topic, wish.partitions)
        .map_err(BenchError::setup)?;
    let producer = SampleProducer::new(&broker.bootstrap_servers()).map_err(BenchError::setup)?;
    let mut records = Vec::with_capacity(wish.documents);
    for (document, partition) in corpus::documents(mix, wish.documents, wish.seed)
        .iter()
        .zip((0..wish.partitions).cycle())
    {
        let body = serde_json::to_vec(document).map_err(BenchError::setup)?;
        records.push(SampleRecord::new(&document.id, body).to_partition(partition));
    }
    match wish.per_second {
        None => producer
            .produce(&wish.topic, &records)
            .map_err(BenchError::setup)?,
        Some(rate) => paced(&producer, &wish.topic, &records, rate)?,
    }
    Ok(records.len())
}

fn paced(
    producer: &SampleProducer,
    topic: &str,
    records: &[SampleRecord],
    rate: f64,
) -> Result<(), BenchError> {
    let started = Instant::now();
    let mut produced = 0;
    while produced < records.len() {
        let due = Duration::from_secs_f64(produced as f64 / rate);
        thread::sleep(due.saturating_sub(started.elapsed()));
        // All that are due by now: a delivery takes longer than the documents of a fast rate are apart.
        let now_due = (started.elapsed().as_secs_f64() * rate) as usize + 1;
        let upto = now_due.clamp(produced + 1, records.len());
        producer
            .produce(topic, records.get(produced..upto).unwrap_or_default())
            .map_err(BenchError::setup)?;
        produced = upto;
    }
    Ok(())
}

/// The broker's process, as the parent sees it; ends when dropped.
pub(in crate::bench) struct BrokerProcess {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    bootstrap_servers: String,
}

impl BrokerProcess {
    /// Starts this program once more, as a broker.
    pub(in crate::bench) fn start() -> Result<Self, BenchError> {
        let program = std::env::current_exe().map_err(BenchError::setup)?;
        let mut child = Command::new(program)
            .args(["bench", SERVE_ARGUMENT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::setup)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(BenchError::setup("the broker's process has no pipes"));
        };
        let mut process = Self {
            child,
            input: Some(input),
            output: BufReader::new(output),
            bootstrap_servers: String::new(),
        };
        match process.answer()? {
            Answer::Brokers(servers) => process.bootstrap_servers = servers,
            other => return Err(BenchError::setup(format!("the broker said {other:?}"))),
        }
        Ok(process)
    }

    pub(in crate::bench) fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Fills a topic and waits until it is filled.
    pub(in crate::bench) fn fill(&mut self, wish: &Fill) -> Result<(), BenchError> {
        self.begin_fill(wish)?;
        self.finish_fill()
    }

    /// Begins to fill a topic; [`Self::finish_fill`] must follow.
    pub(in crate::bench) fn begin_fill(&mut self, wish: &Fill) -> Result<(), BenchError> {
        let line = serde_json::to_string(wish).map_err(BenchError::setup)?;
        let input = self
            .input
            .as_mut()
            .ok_or_else(|| BenchError::setup("the broker's process is closed"))?;
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .map_err(BenchError::setup)
    }

    pub(in crate::bench) fn finish_fill(&mut self) -> Result<(), BenchError> {
        match self.answer()? {
            Answer::Filled(_) => Ok(()),
            Answer::Failed(reason) => Err(BenchError::setup(reason)),
            Answer::Brokers(_) => Err(BenchError::setup("the broker started twice")),
        }
    }

    fn answer(&mut self) -> Result<Answer, BenchError> {
        let mut line = String::new();
        let read = self
            .output
            .read_line(&mut line)
            .map_err(BenchError::setup)?;
        if read == 0 {
            return Err(BenchError::setup("the broker's process has ended"));
        }
        serde_json::from_str(&line).map_err(BenchError::setup)
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        drop(self.input.take());
        // It ends with its input; killing it as well costs nothing where it hangs.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
