//! `bench`: measured throughput of each stage and of the whole.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::bench::{self, BenchOptions, MemoryReport, Mix, Report, Target};
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::cli::terminal::runtime::block_on;
use crate::model::Precision;
use crate::settings::Settings;

/// By what share anonymous memory may grow after the warm-up.
const MOST_GROWTH: f64 = 0.05;

/// Measure the throughput of each stage and of the whole.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
    /// Size of the model: the configured bundle, or one of random weights that `make bench` writes.
    #[arg(long, value_enum, default_value_t = Shape::Compact)]
    shape: Shape,
    /// Number format of a model of random weights.
    #[arg(long, value_enum, default_value_t = Format::Int8)]
    precision: Format,
    /// `none` measures everything but the model.
    #[arg(long, value_enum, default_value_t = Which::Bundle)]
    model: Which,
    /// Only these mixes of documents: titles, articles, mixed.
    #[arg(long, value_delimiter = ',', value_parser = mix)]
    mixes: Vec<Mix>,
    /// Alternations of pipeline and ceiling.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Rough length of one run in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    run_seconds: u64,
    /// Only watch the memory while so many mixed documents run.
    #[arg(long, value_name = "DOCUMENTS", value_parser = clap::value_parser!(u32).range(1000..=10_000_000))]
    memory: Option<u32>,
    /// Write into the configured store instead of an embedded one.
    #[arg(long)]
    configured_store: bool,
    /// Count the documents instead of writing them: a GPU is faster than a store on the same machine.
    #[arg(long, conflicts_with = "configured_store")]
    no_store: bool,
    /// Seed of the documents.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the picture of the stages' shares goes.
    #[arg(long, value_name = "FILE", default_value = "target/bench/stages.svg")]
    picture: PathBuf,
    /// Serve as the broker of a measurement in another process.
    #[arg(long, hide = true)]
    serve_broker: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// The configured bundle.
    Compact,
    /// BERT-base: 12 layers, hidden 768.
    #[value(name = "110m")]
    Base,
    /// BERT-large: 24 layers, hidden 1024.
    #[value(name = "330m")]
    Large,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Fp32,
    /// For GPUs.
    Fp16,
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Bundle,
    None,
}

fn mix(name: &str) -> Result<Mix, String> {
    Mix::parse(name).ok_or_else(|| "known are titles, articles and mixed".to_owned())
}

pub(super) fn execute(mut settings: Settings, arguments: &Arguments) -> Result<(), Failure> {
    if arguments.serve_broker {
        return bench::serve_broker().map_err(Failure::failed);
    }
    if let Some(bundle) = random_bundle(arguments)? {
        settings.model.bundle = bundle;
    }
    let options = BenchOptions {
        with_model: arguments.model == Which::Bundle,
        mixes: if arguments.mixes.is_empty() {
            Mix::ALL.to_vec()
        } else {
            arguments.mixes.clone()
        },
        rounds: usize::try_from(arguments.rounds).unwrap_or(1),
        run_time: Duration::from_secs(arguments.run_seconds),
        target: match (arguments.configured_store, arguments.no_store) {
            (true, _) => Target::Configured,
            (_, true) => Target::Counting,
            _ => Target::Embedded,
        },
        seed: arguments.seed,
    };
    let spinner = output::spinner("measuring");
    if let Some(documents) = arguments.memory {
        let documents = usize::try_from(documents).unwrap_or(usize::MAX);
        let report = block_on(async {
            bench::measure_memory(&settings, &options, documents)
                .await
                .map_err(Failure::failed)
        })?;
        spinner.finish_and_clear();
        return show_memory(&report, arguments.json);
    }
    let say = |what: &str| spinner.set_message(what.to_owned());
    let report = block_on(async {
        bench::measure(&settings, &options, &say)
            .await
            .map_err(Failure::failed)
    })?;
    spinner.finish_and_clear();
    if arguments.json {
        output::json(&report)?;
    } else {
        show(&report, arguments)?;
    }
    write_picture(arguments, &report)
}

/// The folder of the random weights that were asked for.
fn random_bundle(arguments: &Arguments) -> Result<Option<String>, Failure> {
    let shape = match arguments.shape {
        Shape::Compact => return Ok(None),
        Shape::Base => "110m",
        Shape::Large => "330m",
    };
    let precision = match arguments.precision {
        Format::Fp32 => Precision::Fp32,
        Format::Fp16 => Precision::Fp16,
        Format::Int8 => Precision::Int8,
    };
    let folder = format!("models/bench-{shape}-{}", precision.as_str());
    if PathBuf::from(&folder).join("bundle.toml").is_file() {
        return Ok(Some(folder));
    }
    Err(Failure::usage(format!(
        "{folder} is missing; `make {folder}/bundle.toml` writes it, and `make bench ARGS='--shape {shape}'` does so by itself"
    )))
}

fn write_picture(arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    let written = match arguments.picture.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => std::fs::create_dir_all(folder),
        _ => Ok(()),
    };
    written
        .and_then(|()| std::fs::write(&arguments.picture, bench::picture(report)))
        .map_err(|error| {
            Failure::failed(format!(
                "{} cannot be written: {error}",
                arguments.picture.display()
            ))
        })
}

/// Memory that grows is a failure: a worker runs for months.
fn show_memory(report: &MemoryReport, as_json: bool) -> Result<(), Failure> {
    if as_json {
        output::json(report)?;
    } else {
        output::line(format!(
            "{} documents in {:.0} s: {:.1} MiB after the warm-up, {:.1} MiB at the end ({:+.1} %)",
            report.documents,
            report.seconds,
            report.anonymous_mib_after_warm_up,
            report.anonymous_mib_at_the_end,
            100.0 * report.growth
        ))?;
    }
    if report.growth <= MOST_GROWTH {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "memory grew by {}, more than {} is too much",
        output::percent(report.growth),
        output::percent(MOST_GROWTH)
    )))
}

fn show(report: &Report, arguments: &Arguments) -> Result<(), Failure> {
    output::line(format!(
        "{} ({}) on {}",
        report.model, report.precision, report.device
    ))?;
    let mut table = output::table(&[
        "",
        "documents/s",
        "tokens/s",
        "ceiling",
        "ratio",
        "of rounds",
        "cpu ratio",
        "padding",
        "p50 ms",
        "p99 ms",
        "peak MiB",
    ]);
    for (name, mix) in &report.mixes {
        table.add_row(vec![
            (*name).to_owned(),
            format!("{:.0}", mix.pipeline_documents_per_second),
            format!("{:.0}", mix.tokens_per_second),
            format!("{:.0}", mix.ceiling_documents_per_second),
            format!("{:.3}", mix.ratio),
            mix.ratio_range()
                .map_or(String::new(), |(lowest, highest)| {
                    format!("{lowest:.2}-{highest:.2}")
                }),
            format!("{:.3}", mix.cpu_ratio),
            format!("{:.3}", mix.padding_efficiency),
            format!("{:.0}", mix.latency_p50_ms),
            format!("{:.0}", mix.latency_p99_ms),
            format!("{:.0}", mix.peak_rss_mib),
        ]);
    }
    output::line(table)?;
    let names: Vec<&str> = report
        .mixes
        .values()
        .next()
        .map(|mix| mix.stages.keys().copied().collect())
        .unwrap_or_default();
    let mut headers = vec!["seconds per 1,000"];
    headers.extend(&names);
    let mut table = output::table(&headers);
    for (name, mix) in &report.mixes {
        let mut row = vec![(*name).to_owned()];
        row.extend(mix.stages.values().map(|seconds| format!("{seconds:.4}")));
        table.add_row(row);
    }
    output::line(table)?;
    output::line(format!(
        "without a model {:.0} documents/s; start to first tagged document {:.2} s; picture in {}",
        report.without_model_documents_per_second,
        report.start_seconds,
        arguments.picture.display()
    ))
}
