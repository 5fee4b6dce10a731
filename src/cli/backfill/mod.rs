//! `backfill`: a bounded part of the topics, or files, through the whole pipeline; ends by itself,
//! resumes where it was, and says what it did.

mod arguments;
mod filling;
mod work;
mod yielding;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::assemble::{self, Engine};
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::cli::terminal::runtime::{block_on, shutdown_signal};
use crate::cli::worker::lost_store::{Claim, Committed, Registered, note_filled};
use crate::cli::worker::parts;
use crate::cli::worker::recreated_topic::count_stored_beyond;
use crate::pipeline::{self, Counters, Counts, Ending, PipelineError, Throttle, Wiring};
use crate::settings::Settings;
use crate::source::{DeadLetterSink, FileDeadLetters};
use crate::store::Store;
use crate::telemetry::Metrics;
pub(super) use arguments::Arguments;
use arguments::DeadLettersTo;
use filling::Filling;
use work::{Prepared, Wanted, Work};

/// How often the bar moves.
const BAR_EVERY: Duration = Duration::from_millis(250);
/// How often a line tells of the progress where nobody sees a bar.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// Records in flight at most beside a live worker, so that slowing down is felt soon.
const YIELDING_IN_FLIGHT: usize = 1024;

/// What was done, for scripts.
#[derive(Debug, Serialize)]
struct Report {
    job: String,
    /// Whether everything is accounted for.
    finished: bool,
    /// Whether this run went on with an unfinished one.
    resumed: bool,
    /// What this process did.
    #[serde(flatten)]
    counts: Counts,
    seconds: f64,
    documents_per_second: f64,
    /// Where dead letters went.
    dead_letters_in: String,
    source: Value,
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let wanted = Wanted::of(arguments, settings)?;
    let mut settings = settings.clone();
    settings.kafka.accept_gap |= arguments.accept_gap;
    if arguments.yield_to_live {
        let in_flight = &mut settings.pipeline.max_in_flight_records;
        *in_flight = (*in_flight).min(YIELDING_IN_FLIGHT);
    }
    block_on(backfill(&settings, arguments, wanted))
}

async fn backfill(
    settings: &Settings,
    arguments: &Arguments,
    wanted: Wanted,
) -> Result<(), Failure> {
    let shutdown = shutdown_signal()?;
    let engine = assemble::load_engine(settings.clone()).await?;
    let store = assemble::connect_store(settings).await?;
    let started = tokio::select! {
        started = start(settings, arguments, wanted, &engine, &store) => started?,
        () = shutdown.cancelled() => {
            store.close().await.map_err(Failure::failed)?;
            return Err(Failure::failed("stopped before it began"));
        }
    };
    let Some((work, registered)) = started else {
        tracing::warn!(job = arguments.job, "finished already; nothing is done");
        return finished_already(arguments);
    };
    let (dead_letters, letters_in) = open_dead_letters(settings, arguments, &work).await?;
    tracing::info!(
        job = arguments.job,
        resumed = work.is_resumed(),
        total = work.far(0).total,
        "backfill starts"
    );

    let started = Instant::now();
    let counters = Arc::new(Counters::default());
    let metrics = Metrics::new().map_err(Failure::failed)?;
    let stages = engine.into_stages(
        settings,
        work.source(),
        store.clone(),
        dead_letters,
        metrics,
    )?;
    let filling = match arguments.bulk {
        true => Some(Filling::begin(store.clone()).await?),
        false => None,
    };
    let throttle = throttle(arguments);
    let wiring = Wiring {
        throttle: throttle.clone(),
        ..assemble::wiring(settings)
    };
    let beside = CancellationToken::new();
    let showing = tokio::spawn(show(work.clone(), counters.clone(), beside.clone()));
    let yielding = throttle
        .filter(|_| arguments.yield_to_live)
        .map(|throttle| {
            let (live, counters) = (settings.kafka.clone(), counters.clone());
            let (limit, ceiling) = (arguments.yield_lag, arguments.max_docs_per_second);
            tokio::spawn(yielding::watch(live, limit, ceiling, throttle, counters))
        });
    let stop = shutdown.child_token();
    let watching = tokio::spawn(registered.clone().watch(stop.clone()));
    let outcome = pipeline::run(stages, wiring, counters.clone(), stop).await;
    watching.abort();
    beside.cancel();
    let _ = showing.await;
    if let Some(yielding) = yielding {
        yielding.abort();
    }
    let switched_back = match filling {
        Some(filling) => filling.end().await,
        None => Ok(()),
    };
    let lost = registered.lost();
    let finished = outcome.is_ok() && lost.is_ok() && work.is_finished();
    if let Some(progress) = work.range_progress().filter(|_| finished)
        && !registered.lacks_a_part().await
    {
        note_filled(settings, store.as_ref(), &progress).await;
    }
    let closed = store.close().await;

    let seconds = started.elapsed().as_secs_f64();
    let counts = counters.snapshot();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let report = Report {
        job: arguments.job.clone(),
        // Also where it was told to stop with nothing left to do.
        finished,
        resumed: work.is_resumed(),
        counts,
        seconds,
        documents_per_second: counts.accounted_for() as f64 / seconds.max(f64::MIN_POSITIVE),
        dead_letters_in: letters_in,
        source: work.describe(),
    };
    tell(arguments, &report)?;
    lost?;
    closed.map_err(Failure::failed)?;
    judge(arguments, &report, outcome)?;
    switched_back
}

/// Looks how far the job is, makes the store ready for it and starts to read; `None` where the job is
/// finished already and that is enough.
async fn start(
    settings: &Settings,
    arguments: &Arguments,
    wanted: Wanted,
    engine: &Engine,
    store: &Arc<dyn Store>,
) -> Result<Option<(Work, Registered)>, Failure> {
    parts::warn_of(store.as_ref());
    let fingerprint = engine.tagger().fingerprints().labelling.clone();
    let prepared = {
        let (settings, name, once) = (settings.clone(), arguments.job.clone(), arguments.once);
        let later = !arguments.skip_later_deletions;
        let open = move || Prepared::open(wanted, &name, once, later, &fingerprint, &settings);
        tokio::task::spawn_blocking(open)
            .await
            .map_err(Failure::failed)??
    };
    let claim = Claim::of_job(prepared.id(), &arguments.job, arguments.accept_empty_store);
    let committed = async || match prepared.relies_on_earlier_work() {
        true => Ok(Committed::Something),
        false => Ok(Committed::Nothing),
    };
    let lacks_a_part = claim.accepts
        && claim
            .objection(store.as_ref(), &settings.store, &committed)
            .await?
            .is_some();
    claim
        .check(store.as_ref(), &settings.store, committed)
        .await?;
    assemble::prepare_store_for_run(store, settings, &engine.expectation()).await?;
    if prepared.is_left_alone() {
        return Ok(None);
    }
    let registered = match prepared.relies_on_earlier_work() {
        true if !lacks_a_part => claim.register(store).await?,
        relies => claim.register_job(store, !relies).await?,
    };
    let stored = count_stored_beyond(store);
    let work = tokio::task::spawn_blocking(move || prepared.start(stored))
        .await
        .map_err(Failure::failed)??;
    Ok(work.map(|work| (work, registered)))
}

/// The sink of dead letters, and where that is in words.
async fn open_dead_letters(
    settings: &Settings,
    arguments: &Arguments,
    work: &Work,
) -> Result<(Arc<dyn DeadLetterSink>, String), Failure> {
    let to = arguments.dead_letters.unwrap_or(match work {
        Work::Range(_) => DeadLettersTo::Kafka,
        Work::Files(_) => DeadLettersTo::File,
    });
    match to {
        DeadLettersTo::Kafka => {
            let producer = parts::open_dead_letters(settings).await?;
            let place = format!("topic {}", settings.kafka.dead_letter_topic);
            Ok((Arc::new(producer), place))
        }
        DeadLettersTo::File => {
            let path = settings
                .backfill
                .state_dir
                .join(format!("{}.dead-letters.jsonl", arguments.job));
            let sink = FileDeadLetters::open(&path, work.is_resumed()).map_err(|error| {
                Failure::failed(format!(
                    "{} cannot be written: {error} (backfill.state_dir)",
                    path.display()
                ))
            })?;
            Ok((Arc::new(sink), path.display().to_string()))
        }
    }
}

fn throttle(arguments: &Arguments) -> Option<Arc<Throttle>> {
    let wanted = arguments.yield_to_live || arguments.max_docs_per_second.is_some();
    wanted.then(|| Arc::new(Throttle::new(arguments.max_docs_per_second)))
}

/// Shows how far the work is until it is over: a bar for people, lines for a log.
async fn show(work: Work, counters: Arc<Counters>, over: CancellationToken) {
    let bar = bar(&work);
    let seen = std::io::stderr().is_terminal();
    let every = if seen { BAR_EVERY } else { LOG_EVERY };
    let started = Instant::now();
    let at_start = work.far(0).done;
    // What an earlier run did says nothing of the rate of this one.
    bar.set_position(at_start);
    bar.reset_eta();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = over.cancelled() => break,
        }
        let counts = counters.snapshot();
        let far = work.far(counts.accounted_for());
        let elapsed = started.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "rates for people")]
        let (rate, pace) = (
            counts.accounted_for() as f64 / elapsed,
            far.done.saturating_sub(at_start) as f64 / elapsed,
        );
        bar.set_length(far.total);
        bar.set_position(far.done);
        if seen {
            bar.set_prefix(format!("{} documents {rate:.0}/s", counts.accounted_for()));
            continue;
        }
        #[expect(clippy::cast_precision_loss, reason = "a time for people")]
        let left = (pace > 0.0).then(|| (far.total.saturating_sub(far.done) as f64 / pace).ceil());
        tracing::info!(
            done = far.done,
            total = far.total,
            documents = counts.accounted_for(),
            superseded = counts.superseded,
            dead_lettered = counts.dead_lettered,
            per_second = (rate * 10.0).round() / 10.0,
            seconds_left = left,
            "backfill goes on"
        );
    }
    bar.finish_and_clear();
}

fn bar(work: &Work) -> ProgressBar {
    let bar = output::bar(work.far(0).total, "backfill");
    if matches!(work, Work::Files(_)) {
        let template =
            "{msg:>12} {bar:40.cyan/blue} {percent}% of {total_bytes} {prefix} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
    }
    bar
}

fn finished_already(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.json {
        let job = &arguments.job;
        output::json(
            &serde_json::json!({ "job": job, "finished": true, "already_finished": true }),
        )?;
    }
    Ok(())
}

fn tell(arguments: &Arguments, report: &Report) -> Result<(), Failure> {
    if arguments.json {
        return output::json(report);
    }
    let Counts {
        written,
        deleted,
        superseded,
        dead_lettered,
        ..
    } = report.counts;
    output::line(format!(
        "{}: {written} written, {deleted} deleted, {superseded} superseded, {dead_lettered} dead-lettered{} in {:.1} s ({:.1} a second){}",
        report.job,
        if dead_lettered > 0 {
            format!(" ({})", report.dead_letters_in)
        } else {
            String::new()
        },
        report.seconds,
        report.documents_per_second,
        if report.finished {
            "; everything is accounted for"
        } else {
            ""
        },
    ))
}

fn judge(
    arguments: &Arguments,
    report: &Report,
    outcome: Result<Ending, PipelineError>,
) -> Result<(), Failure> {
    match outcome {
        Err(error) => Err(Failure::failed(error)),
        Ok(_) if !report.finished => Err(Failure::failed(
            "stopped before the end; the same command goes on from here",
        )),
        Ok(_) if arguments.fail_on_dead_letters && report.counts.dead_lettered > 0 => {
            Err(Failure::failed(format!(
                "dead letters: {} ({})",
                report.counts.dead_lettered, report.dead_letters_in
            )))
        }
        Ok(_) => Ok(()),
    }
}
