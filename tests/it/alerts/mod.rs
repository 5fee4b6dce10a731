//! Alerts and dashboard speak of series, labels and keys that exist.

mod failures;
mod film;
mod promql;
mod rules;
mod scene;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tcbert_worker::decode::DecodeError;
use tcbert_worker::settings::Settings;
use tcbert_worker::telemetry::{Metrics, Outcome, Part, PartitionLag, Stage};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Everything that a worker shows, each series once.
fn shown() -> String {
    let metrics = Metrics::new().unwrap();
    metrics.partitions(vec![PartitionLag {
        topic: "news".to_owned(),
        partition: 0,
        records: Some(1),
        stalled: false,
    }]);
    for part in Part::ALL {
        metrics.part_is_well(part.name(), true);
    }
    metrics.expect_dead_letters(DecodeError::CLASSES);
    metrics.documents(Outcome::Written, 1);
    metrics.batch(1, 1, 1);
    metrics.stage(Stage::EndToEnd, Duration::from_millis(1));
    metrics.render()
}

/// Names of series in expressions.
fn series(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_part(c));
    let names = words.filter(|word| word.starts_with("tcbert_") || word.starts_with("process_"));
    names.map(str::to_owned).collect()
}

/// Matchers such as `kind="real"`, also as JSON writes them.
fn matchers(text: &str) -> BTreeSet<String> {
    let text = text.replace("\\\"", "\"");
    let mut found = BTreeSet::new();
    for part in text.split('{').skip(1) {
        let inner = part.split('}').next().unwrap_or_default();
        for matcher in inner.split(',') {
            let Some((label, value)) = matcher.split_once('=') else {
                continue;
            };
            let (label, value) = (label.trim().trim_end_matches('!'), value.trim());
            if label.chars().all(|c| c.is_ascii_lowercase())
                && value.starts_with('"')
                && label != "job"
            {
                found.insert(format!("{label}={value}"));
            }
        }
    }
    found
}

#[test]
fn every_series_and_label_of_alerts_and_dashboard_is_shown() {
    let shown = shown();
    for file in [
        "docker/prometheus/alerts.yaml",
        "docker/grafana/dashboard.json",
    ] {
        let text = read(file);
        let names = series(&text);
        assert!(names.len() >= 8, "{file}: {names:?}");
        for name in names {
            let known = |name: &str| shown.contains(&format!("# TYPE {name} "));
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            assert!(
                known(&name) || base.is_some_and(known),
                "{file}: {name} is not shown:\n{shown}"
            );
        }
        for matcher in matchers(&text) {
            assert!(shown.contains(&matcher), "{file}: {matcher}\n{shown}");
        }
    }
    assert!(!matchers(&read("docker/prometheus/alerts.yaml")).is_empty());
}

/// Each failure's test shows that its alerts fire and that these series move.
#[test]
fn every_alert_fires_and_every_series_and_label_moves_in_a_failure() {
    let alerts = failures::ALL.iter().flat_map(|failure| failure.alerts);
    let firing: BTreeSet<&str> = alerts.map(|(alert, _)| *alert).collect();
    let rules = rules::read();
    let named: BTreeSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(firing, named);
    let moves = failures::ALL.iter().flat_map(|failure| failure.moves);
    let moving: BTreeSet<&str> = moves.copied().collect();
    let moves = |wanted: &str| {
        let mut moving = moving.iter();
        moving.any(|series| *series == wanted || series.starts_with(&format!("{wanted}{{")))
    };
    for file in [
        "docker/prometheus/alerts.yaml",
        "docker/grafana/dashboard.json",
    ] {
        let text = read(file);
        for name in series(&text) {
            assert!(moves(&name), "{file}: {name} moves in no failure");
        }
        for matcher in matchers(&text) {
            let mut moving = moving.iter();
            let moves = moving.any(|series| series.contains(&format!("{{{matcher}}}")));
            assert!(moves, "{file}: {matcher} moves in no failure");
        }
    }
    // The dashboard shows each value of these labels.
    for part in Part::ALL {
        assert!(moves(&format!("tcbert_well{{part={:?}}}", part.name())));
    }
    for value in [
        "written",
        "deleted",
        "superseded",
        "dead_lettered",
        "abandoned",
    ] {
        assert!(
            moves(&format!("tcbert_documents_total{{outcome={value:?}}}")),
            "{value}"
        );
    }
    for value in ["assigned", "revoked", "lost"] {
        assert!(
            moves(&format!("tcbert_rebalances_total{{kind={value:?}}}")),
            "{value}"
        );
    }
    let shown = shown();
    let stages = shown
        .lines()
        .filter(|line| line.starts_with("tcbert_stage_seconds_count{"));
    let stages: Vec<&str> = stages
        .filter_map(|line| line.split_once(' ').map(|(one, _)| one))
        .collect();
    assert!(stages.len() >= 8, "{stages:?}");
    for stage in stages {
        assert!(moves(stage), "{stage} moves in no failure");
    }
}

#[test]
fn actions_of_alerts_name_keys_that_exist() {
    let sections = Settings::sections();
    let mut named = 0;
    let alerts = read("docker/prometheus/alerts.yaml");
    for line in alerts.lines().filter(|line| line.contains("action:")) {
        for word in line.split(|c: char| !(c.is_ascii_lowercase() || c == '_' || c == '.')) {
            let Some((name, key)) = word.split_once('.') else {
                continue;
            };
            let mut sections = sections.iter();
            if let Some(section) = sections.find(|section| section.name == name)
                && !key.is_empty()
            {
                named += 1;
                let is_declared = section.keys.iter().any(|declared| declared.name == key);
                assert!(is_declared, "{word} in {line}");
            }
        }
    }
    assert!(named >= 3, "{named}");
}
