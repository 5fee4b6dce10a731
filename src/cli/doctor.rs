//! `doctor`: checks configuration, runtime, model, taxonomy, store and broker, and says what to mend.

use clap::Args;
use comfy_table::{Cell, Color};
use serde::Serialize;

use crate::assemble::{self, Engine};
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::cli::terminal::runtime::block_on;
use crate::cli::worker::lost_store::{Claim, Committed, committed_by_group};
use crate::kafka;
use crate::settings::Settings;
use crate::store::migrate::{self, MigrateError};
use crate::store::{CollectionInfo, Store};

/// Check configuration, broker, store, model and device, and say what to mend.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// How one check ended.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    passed: bool,
    /// What was found, or what is wrong and what to do.
    finding: String,
    /// What deserves attention though the check passed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Check {
    fn of(name: &'static str, outcome: Result<String, String>) -> Self {
        let passed = outcome.is_ok();
        let (Ok(finding) | Err(finding)) = outcome;
        Self {
            name,
            passed,
            finding,
            warnings: Vec::new(),
        }
    }

    fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    /// Finding and warnings, a line each.
    fn text(&self) -> String {
        let lines: Vec<&str> = std::iter::once(&self.finding)
            .chain(&self.warnings)
            .map(String::as_str)
            .filter(|line| !line.is_empty())
            .collect();
        lines.join("\n")
    }
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let spinner = output::spinner("checking");
    let checks = block_on(async { Ok(run_checks(settings).await) })?;
    spinner.finish_and_clear();
    let failed = checks.iter().filter(|check| !check.passed).count();
    if arguments.json {
        output::json(&serde_json::json!({ "healthy": failed == 0, "checks": checks }))?;
    } else {
        let mut table = output::table(&["check", "", "finding"]);
        for check in &checks {
            let mark = match (check.passed, check.warnings.is_empty()) {
                (true, true) => Cell::new("ok").fg(Color::Green),
                (true, false) => Cell::new("warning").fg(Color::Yellow),
                (false, _) => Cell::new("fix").fg(Color::Red),
            };
            table.add_row(vec![Cell::new(check.name), mark, Cell::new(check.text())]);
        }
        output::line(table)?;
    }
    match failed {
        0 => Ok(()),
        1 => Err(Failure::failed("1 check failed")),
        count => Err(Failure::failed(format!("{count} checks failed"))),
    }
}

async fn run_checks(settings: &Settings) -> Vec<Check> {
    let mut checks = vec![Check::of(
        "configuration",
        Ok("every key is known and within its bounds".to_owned()),
    )];
    let engine = assemble::load_engine(settings.clone()).await;
    checks.push(Check::of(
        "model",
        engine
            .as_ref()
            .map(Engine::describe)
            .map_err(ToString::to_string),
    ));
    if let Ok(engine) = &engine {
        let taxonomy = engine.taxonomy();
        checks.push(Check::of(
            "taxonomy",
            Ok(format!(
                "{}: {} labels",
                taxonomy.name,
                taxonomy.labels.len()
            )),
        ));
    }
    checks.push(Check::of("store", check_store(settings).await));
    let broker = check_broker(settings).await;
    let dead_letters = check_dead_letters(settings, broker.is_ok()).await;
    checks.push(Check::of("broker", broker));
    checks.push(dead_letters);
    checks
}

async fn check_store(settings: &Settings) -> Result<String, String> {
    let Ok(target) = assemble::migration_target(settings) else {
        // Why not, the model's own line says.
        return Err("not checked: the model has to load first".to_owned());
    };
    let store = assemble::connect_store(settings)
        .await
        .map_err(|error| error.to_string())?;
    let checked = migrate::check(store.as_ref(), &target).await;
    let info = store.collection().await.map_err(|error| error.to_string());
    let objection = objection(settings, store.as_ref()).await;
    let warnings = store.warnings();
    store.close().await.map_err(|error| error.to_string())?;
    if let Some(objection) = objection? {
        return Err(objection);
    }
    let finding = describe_store(settings, checked, info)?;
    Ok(std::iter::once(finding)
        .chain(
            warnings
                .into_iter()
                .map(|warning| format!("warning: {warning}")),
        )
        .collect::<Vec<_>>()
        .join("; "))
}

/// Why `run` would not work on the store.
async fn objection(settings: &Settings, store: &dyn Store) -> Result<Option<String>, String> {
    let claim = Claim::of_group(&settings.kafka, false);
    let committed = async || match committed_by_group(&settings.kafka).await {
        Ok(committed) => Ok(committed),
        // What is wrong with the broker, its own line says.
        Err(_) => Ok(Committed::Nothing),
    };
    claim
        .objection(store, &settings.store, committed)
        .await
        .map_err(|failure| failure.to_string())
}

fn describe_store(
    settings: &Settings,
    checked: Result<(), MigrateError>,
    info: Result<Option<CollectionInfo>, String>,
) -> Result<String, String> {
    match checked {
        Err(MigrateError::Missing { collection }) if settings.store.apply_migrations => {
            return Ok(format!(
                "the collection {collection} is made at the first run"
            ));
        }
        checked => checked.map_err(|error| error.to_string())?,
    }
    Ok(match info? {
        Some(info) => format!(
            "{} with {} points of {} dimensions",
            info.name, info.points, info.vector_size
        ),
        None => "there is no collection".to_owned(),
    })
}

async fn check_broker(settings: &Settings) -> Result<String, String> {
    let kafka = settings.kafka.clone();
    tokio::task::spawn_blocking(move || kafka::describe_broker(&kafka))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
}

/// Without a broker there is nothing to ask, and its own line says why.
async fn check_dead_letters(settings: &Settings, is_broker_there: bool) -> Check {
    const NAME: &str = "dead letters";
    if !is_broker_there {
        return Check::of(NAME, Err("not checked: no broker answers".to_owned()));
    }
    let kafka::DeadLetterFindings {
        found,
        warnings,
        faults,
    } = kafka::check_dead_letters(&settings.kafka, &settings.dead_letter).await;
    let outcome = match faults.is_empty() {
        true => Ok(found.join("; ")),
        false => Err(faults.join("; ")),
    };
    Check::of(NAME, outcome).with_warnings(warnings)
}
