//! Measures what the worker costs beside what its model costs, over the real stages: each alone, the
//! raw runtime over the same batches, the pipeline without a model, and the pipeline with it.
//!
//! Ratios are of runs taken in turn, so that a machine that slows down slows both. Must not be seen
//! by any stage.

mod ceiling;
mod corpus;
mod error;
mod lent;
mod memory;
mod report;
mod run;
mod stages;
mod steady;
mod turns;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use corpus::Mix;
pub use error::BenchError;
pub use memory::{MemoryReport, measure_memory};
pub use report::{MixReport, Report, picture};
pub use run::Target;
pub use run::broker::{SERVE_ARGUMENT, serve as serve_broker};

use crate::model::{Bundle, Model, OnnxModel, PassInput};
use crate::score::{ModelIdentity, Tagger};
use crate::settings::Settings;
use crate::tokenize::PromptTokenizer;
use lent::{Lent, NoModel};
use run::broker::{BrokerProcess, Fill};
use run::{Plan, Seen, probe};
use steady::{median, percentile};
use turns::{Ran, Turns};

/// Partitions of each topic: the mock broker drops what exceeds 5 MB of one.
const PARTITIONS: i32 = 24;
/// Documents over which a first rate is guessed.
const GUESS_DOCUMENTS: usize = 200;
/// What they must take to be trusted, and by what their number grows where they take less.
const GUESS_TIME: Duration = Duration::from_secs(2);
const GUESS_GROWTH: usize = 5;
/// Documents of a run, whatever its rate: some dozens of batches. A large model takes half a minute over so many articles.
const MIN_DOCUMENTS: usize = 96;
/// Documents of which latencies are taken, whatever their rate.
const MIN_LATENCIES: usize = 80;
/// Documents that a run of a slow model has if that is not more than so many times its length: writes are up to a
/// second apart there, and a rate needs many of them.
const ENOUGH_DOCUMENTS: f64 = 1_200.0;
const LONGEST_RUN: f64 = 3.0;
const MAX_DOCUMENTS: usize = 100_000;
/// Documents of the run without a model.
const WITHOUT_MODEL_DOCUMENTS: usize = 200_000;
/// Documents of a stage measured alone.
const STAGE_DOCUMENTS: usize = 5_000;
/// Share of the pipeline's rate at which latencies are taken.
const LATENCY_LOAD: f64 = 0.5;
/// What arrives in this time is not counted: a worker joins its group in three seconds, and at half the load it takes
/// as long again to catch up.
const LATENCY_WARM_UP: Duration = Duration::from_secs(8);
/// Share of the documents that is counted in any case, where a fast rate has too few of them.
const LEAST_COUNTED: f64 = 0.2;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Measure the pipeline with the model and its ceiling; without, only what costs beside it.
    pub with_model: bool,
    /// Mixes of documents.
    pub mixes: Vec<Mix>,
    /// Alternations of pipeline and ceiling.
    pub rounds: usize,
    /// Rough length of one run.
    pub run_time: Duration,
    /// Where the points go.
    pub target: Target,
    /// Seed of the documents.
    pub seed: u64,
}

/// Measures; `say` is told what is being measured.
///
/// # Errors
/// When a stage cannot be built or fails.
pub async fn measure(
    settings: &Settings,
    options: &BenchOptions,
    say: &dyn Fn(&str),
) -> Result<Report, BenchError> {
    say("the start of a process");
    let start_seconds = if options.with_model {
        start_seconds(settings)?
    } else {
        0.0
    };
    let mut bench = Bench::new(settings, options)?;
    let mut mixes = BTreeMap::new();
    for mix in &options.mixes {
        mixes.insert(mix.name(), bench.mix(*mix, say).await?);
    }
    say("titles without a model");
    let without_model = bench.without_model().await?;
    let manifest = bench.bundle.manifest();
    Ok(Report {
        model: if options.with_model {
            manifest.name.clone()
        } else {
            "none".to_owned()
        },
        device: bench.device,
        precision: manifest.precision.as_str().to_owned(),
        mixes,
        without_model_documents_per_second: without_model,
        start_seconds,
    })
}

struct Bench<'a> {
    settings: &'a Settings,
    options: &'a BenchOptions,
    bundle: Bundle,
    tokenizer: Arc<PromptTokenizer>,
    models: Vec<Lent>,
    device: String,
    broker: BrokerProcess,
    topics: usize,
}

impl<'a> Bench<'a> {
    fn new(settings: &'a Settings, options: &'a BenchOptions) -> Result<Self, BenchError> {
        let bundle = settings.model.open_bundle().map_err(BenchError::setup)?;
        let tokenizer =
            PromptTokenizer::from_file(&bundle.tokenizer_path()).map_err(BenchError::setup)?;
        let (models, device) = if options.with_model {
            let models =
                OnnxModel::load_all(&bundle, &settings.model).map_err(BenchError::setup)?;
            let device = models
                .first()
                .map_or(String::new(), |model| model.device().to_string());
            let models = models
                .into_iter()
                .map(|model| Lent::new(Box::new(model)))
                .collect();
            (models, device)
        } else {
            let hidden_size = bundle.manifest().hidden_size;
            (
                vec![Lent::new(Box::new(NoModel { hidden_size }))],
                "none".to_owned(),
            )
        };
        Ok(Self {
            settings,
            options,
            tokenizer: Arc::new(tokenizer),
            bundle,
            models,
            device,
            broker: BrokerProcess::start()?,
            topics: 0,
        })
    }

    fn tagger(&self) -> Result<Tagger, BenchError> {
        let manifest = self.bundle.manifest();
        let identity = ModelIdentity {
            fingerprint: self.bundle.fingerprint().to_owned(),
            max_tokens: manifest.max_tokens,
            hidden_size: manifest.hidden_size,
        };
        Tagger::new(&self.settings.tagging, self.tokenizer.clone(), &identity)
            .map_err(BenchError::setup)
    }

    /// Of a topic that is not there yet.
    fn fill_of(&mut self, mix: Mix, documents: usize, per_second: Option<f64>) -> Fill {
        self.topics += 1;
        Fill {
            topic: format!("bench-{}", self.topics),
            partitions: PARTITIONS,
            mix: mix.name().to_owned(),
            documents,
            seed: self.options.seed,
            per_second,
        }
    }

    async fn mix(&mut self, mix: Mix, say: &dyn Fn(&str)) -> Result<MixReport, BenchError> {
        let name = mix.name();
        say(&format!("{name}: each stage alone"));
        let tagger = self.tagger()?;
        let sample = corpus::documents(mix, STAGE_DOCUMENTS, self.options.seed);
        let mut stages = stages::measure(self.settings, &tagger, &sample).await?;

        say(&format!("{name}: warming up"));
        let guess = self.guess(&tagger, &sample)?;
        let wanted = guess * self.options.run_time.as_secs_f64();
        let documents = wanted.max((wanted * LONGEST_RUN).min(ENOUGH_DOCUMENTS));
        let documents = (documents as usize).clamp(MIN_DOCUMENTS, MAX_DOCUMENTS);
        let fill = self.fill_of(mix, documents, None);
        self.broker.fill(&fill)?;
        self.models.iter().for_each(Lent::start_recording);
        probe::reset_peak_memory();
        let first = self.run(&fill).await?;
        let peak_rss_mib = probe::peak_memory_mib();
        // In the pipeline's order: a rate leaves out both ends, which have to be the same ones.
        let mut passes: Vec<_> = self.models.iter().flat_map(Lent::stop_recording).collect();
        passes.sort_by_key(|(began, _)| *began);
        let passes: Vec<PassInput> = passes.into_iter().map(|(_, pass)| pass).collect();
        // A text may take several passes: what counts is how many texts went through.
        let passes_per_document =
            passes.iter().map(|pass| pass.batch).sum::<usize>() as f64 / documents as f64;

        self.take_busy();
        let mut turns = Turns::begin(self.ceiling(&passes, passes_per_document)?);
        let mut infer = self.take_busy();
        for round in 1..=self.options.rounds {
            say(&format!("{name}: round {round} of {}", self.options.rounds));
            let begin = probe::processor_seconds();
            let per_second = self.run(&fill).await?.notes.progress.per_second();
            let pipeline = Ran {
                per_second,
                processor_seconds: probe::processor_seconds() - begin,
            };
            self.take_busy();
            turns.add(pipeline, self.ceiling(&passes, passes_per_document)?);
            infer += self.take_busy();
        }
        let inferred = (documents * turns.ceiling_rates().len()) as f64;
        stages
            .0
            .push(("infer", infer.as_secs_f64() * 1000.0 / inferred));

        say(&format!("{name}: latency at half the load"));
        let rate = median(&turns.pipeline_rates());
        let latencies = self.latencies(mix, rate * LATENCY_LOAD).await?;
        Ok(MixReport {
            ceiling_documents_per_second: median(&turns.ceiling_rates()),
            pipeline_documents_per_second: rate,
            ratio: median(&turns.ratios()),
            ratios: turns.ratios(),
            cpu_ratio: median(&turns.processor_ratios()),
            padding_efficiency: first.padding_efficiency(),
            latency_p50_ms: median(&latencies),
            latency_p99_ms: percentile(&latencies, 0.99),
            peak_rss_mib,
            stages: stages.0.into_iter().collect(),
            tokens_per_second: rate * first.counts.tokens as f64 / documents as f64,
        })
    }

    /// Time that all sessions spent within passes since the last call.
    fn take_busy(&self) -> Duration {
        self.models.iter().map(Lent::take_busy).sum()
    }

    /// The runtime alone over `passes`, in documents as the pipeline counts them.
    fn ceiling(&self, passes: &[PassInput], passes_per_document: f64) -> Result<Ran, BenchError> {
        let begin = probe::processor_seconds();
        let per_second = ceiling::run(&self.models, passes)?.per_second() / passes_per_document;
        Ok(Ran {
            per_second,
            processor_seconds: probe::processor_seconds() - begin,
        })
    }

    /// A first guess of documents a second, from a few batches of the runtime alone; from more of them where
    /// those are too fast to tell, as on a GPU, whose first passes prepare what all later ones use.
    fn guess(&self, tagger: &Tagger, sample: &[corpus::BenchDocument]) -> Result<f64, BenchError> {
        let batch = &self.settings.batch;
        let mut documents = GUESS_DOCUMENTS;
        loop {
            let few = &sample[..documents.min(sample.len())];
            let mut encoded: Vec<_> = few
                .iter()
                .map(|document| tagger.encode(&format!("{}{}", document.title, document.text)))
                .collect();
            encoded.sort_by_key(|text| text.ids.len());
            let longest = encoded.last().map_or(1, |text| tagger.row_tokens(text));
            let rows = (batch.token_budget / longest).clamp(1, batch.max_rows);
            let passes: Vec<PassInput> = encoded
                .chunks(rows)
                .flat_map(|chunk| tagger.inputs(&chunk.iter().collect::<Vec<_>>()))
                .collect();
            let started = Instant::now();
            let progress = ceiling::run(&self.models, &passes)?;
            if started.elapsed() >= GUESS_TIME || few.len() == sample.len() {
                let each = progress.total() as f64 / few.len() as f64;
                return Ok(progress.per_second() / each);
            }
            documents *= GUESS_GROWTH;
        }
    }

    async fn run(&self, fill: &Fill) -> Result<Seen, BenchError> {
        self.run_into(fill, self.options.target).await
    }

    async fn run_into(&self, fill: &Fill, target: Target) -> Result<Seen, BenchError> {
        run::pipeline(Plan {
            settings: self.settings,
            bundle: &self.bundle,
            tagger: self.tagger()?,
            models: run::lend(&self.models),
            brokers: self.broker.bootstrap_servers(),
            fill,
            target,
        })
        .await
    }

    /// From produced to written, with documents that arrive evenly.
    async fn latencies(&mut self, mix: Mix, per_second: f64) -> Result<Vec<f64>, BenchError> {
        let warm_up = LATENCY_WARM_UP.as_secs_f64();
        let wanted = per_second * (warm_up + self.options.run_time.as_secs_f64());
        let documents = (wanted as usize).clamp(MIN_LATENCIES, MAX_DOCUMENTS);
        let warm_up = (per_second * warm_up).min(documents as f64 * (1.0 - LEAST_COUNTED)) as usize;
        let fill = self.fill_of(mix, documents, Some(per_second));
        self.broker.begin_fill(&fill)?;
        let seen = self.run(&fill).await?;
        self.broker.finish_fill()?;
        Ok(seen.notes.latencies_ms.into_iter().skip(warm_up).collect())
    }

    async fn without_model(&mut self) -> Result<f64, BenchError> {
        let fill = self.fill_of(Mix::Titles, WITHOUT_MODEL_DOCUMENTS, None);
        self.broker.fill(&fill)?;
        let hidden_size = self.bundle.manifest().hidden_size;
        let mut rates = Vec::new();
        for _ in 0..self.options.rounds {
            let model: Box<dyn Model> = Box::new(NoModel { hidden_size });
            let seen = run::pipeline(Plan {
                settings: self.settings,
                bundle: &self.bundle,
                tagger: self.tagger()?,
                models: vec![model],
                brokers: self.broker.bootstrap_servers(),
                fill: &fill,
                target: Target::Counting,
            })
            .await?;
            rates.push(seen.notes.progress.per_second());
        }
        Ok(median(&rates))
    }
}

/// From the start of a process to its first tagged document.
fn start_seconds(settings: &Settings) -> Result<f64, BenchError> {
    let program: PathBuf = std::env::current_exe().map_err(BenchError::setup)?;
    let started = Instant::now();
    let mut child = Command::new(program)
        .args(["tag", "--json", "国足主场两球取胜，提前一轮晋级"])
        .env("TCBERT__MODEL__BUNDLE", &settings.model.bundle)
        .env("TCBERT__MODEL__DEVICE", &settings.model.device)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(BenchError::setup)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output)
            .read_line(&mut line)
            .map_err(BenchError::failed)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let status = child.wait().map_err(BenchError::failed)?;
    if status.success() && line.contains("\"topic\"") {
        return Ok(seconds);
    }
    Err(BenchError::failed(format!(
        "`tcbert-worker tag` ended with {status} and {line:?}"
    )))
}
