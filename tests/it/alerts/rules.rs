//! The alerts of `alerts.yaml` over series: which fire when. The same is asked of `promtool` where that is
//! installed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use super::promql::{self, Data, Expression, Labels, NAME};

/// Seconds between two samples, and between two looks at the rules.
pub const STEP: i64 = 60;

/// One alert.
pub struct Rule {
    pub name: String,
    pub text: String,
    expression: Expression,
    hold: i64,
    labels: Labels,
    annotations: Labels,
}

/// When an alert with these labels fired: from, and up to where it was over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firing {
    pub alert: String,
    pub labels: Labels,
    pub from: i64,
    pub until: Option<i64>,
}

pub fn file() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/prometheus/alerts.yaml")
}

/// Reads the rules; a line that it does not know is an error.
pub fn read() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let text = std::fs::read_to_string(file()).unwrap();
    let mut lines = text.lines().filter(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#')
    });
    let mut folded = false;
    for expected in ["groups:", "  - name: tcbert-worker", "    rules:"] {
        assert_eq!(lines.next(), Some(expected));
    }
    for line in lines {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("- alert: ") {
            rules.push(Rule {
                name: name.to_owned(),
                text: String::new(),
                expression: Expression::Number(0.0),
                hold: 0,
                labels: Labels::new(),
                annotations: Labels::new(),
            });
            continue;
        }
        let rule = rules.last_mut().unwrap();
        if let Some(text) = line.strip_prefix("expr: ") {
            folded = text == ">";
            rule.text = if folded {
                String::new()
            } else {
                text.to_owned()
            };
        } else if let Some(hold) = line.strip_prefix("for: ") {
            (rule.hold, folded) = (promql::duration(hold), false);
        } else if let Some(labels) = line.strip_prefix("labels: {") {
            let (name, value) = labels.trim_end_matches('}').split_once(": ").unwrap();
            rule.labels.insert(name.to_owned(), value.to_owned());
            folded = false;
        } else if line == "annotations:" {
            folded = false;
        } else if folded {
            let _ = write!(rule.text, " {line}");
        } else {
            let (name, value) = line.split_once(": ").unwrap();
            assert!(["summary", "action"].contains(&name), "{line}");
            let value = value.trim_matches('"').to_owned();
            rule.annotations.insert(name.to_owned(), value);
        }
    }
    for rule in &mut rules {
        rule.expression = Expression::parse(&rule.text);
    }
    assert!(rules.len() >= 11, "{}", rules.len());
    rules
}

/// What fires at each look, up to `end`.
pub fn run(rules: &[Rule], data: &Data, end: i64) -> Vec<Firing> {
    let mut firings = Vec::new();
    let mut looks = Vec::new();
    for rule in rules {
        let mut since: BTreeMap<Labels, i64> = BTreeMap::new();
        let mut open: BTreeMap<Labels, usize> = BTreeMap::new();
        for time in (0..).map(|n| n * STEP).take_while(|time| *time <= end) {
            let mut active = BTreeMap::new();
            for (mut labels, value) in rule.expression.at(data, time) {
                labels.remove(NAME);
                labels.extend(rule.labels.clone());
                let first = since.get(&labels).copied().unwrap_or(time);
                active.insert(labels.clone(), first);
                if time - first >= rule.hold {
                    open.entry(labels.clone()).or_insert_with(|| {
                        firings.push(Firing {
                            alert: rule.name.clone(),
                            labels: labels.clone(),
                            from: time,
                            until: None,
                        });
                        firings.len() - 1
                    });
                    looks.push((rule, time, labels, value));
                }
            }
            open.retain(|labels, at| {
                let goes_on = active.contains_key(labels);
                if !goes_on {
                    firings[*at].until = Some(time);
                }
                goes_on
            });
            since = active;
        }
    }
    compare_with_promtool(rules, data, &looks, end);
    firings
}

type Look<'a> = (&'a Rule, i64, Labels, f64);

/// Asks `promtool test rules` whether at each look those alerts fire and no others, where it is installed.
fn compare_with_promtool(rules: &[Rule], data: &Data, looks: &[Look<'_>], end: i64) {
    let known = Command::new("promtool").arg("--version").output();
    if !known.is_ok_and(|output| output.status.success()) {
        return;
    }
    let mut test = format!(
        "rule_files: [{}]\nevaluation_interval: {STEP}s\ntests:\n- interval: {STEP}s\n  input_series:\n",
        file().display()
    );
    for (labels, series) in data {
        if !rules.iter().any(|rule| rule.text.contains(&labels[NAME])) {
            continue;
        }
        let pairs = labels.iter().filter(|(label, _)| *label != NAME);
        let pairs: Vec<String> = pairs
            .map(|(label, value)| format!("{label}={value:?}"))
            .collect();
        let samples = (0..=end / STEP).map(|n| match series.0.get(&(n * STEP)) {
            None => "_".to_owned(),
            Some(None) => "stale".to_owned(),
            Some(Some(value)) => value.to_string(),
        });
        let samples: Vec<String> = samples.collect();
        let _ = writeln!(
            test,
            "  - series: '{}{{{}}}'\n    values: '{}'",
            labels[NAME],
            pairs.join(","),
            samples.join(" ")
        );
    }
    test.push_str("  alert_rule_test:\n");
    for rule in rules {
        for time in (0..=end / STEP).map(|n| n * STEP) {
            let _ = writeln!(test, "  - eval_time: {time}s\n    alertname: {}", rule.name);
            let now = looks
                .iter()
                .filter(|(of, at, ..)| of.name == rule.name && *at == time);
            let now: Vec<_> = now.collect();
            if now.is_empty() {
                continue;
            }
            test.push_str("    exp_alerts:\n");
            for (_, _, labels, value) in now {
                let _ = writeln!(test, "    - exp_labels: {}", mapping(labels));
                let texts = rule.annotations.iter();
                let texts = texts.map(|(name, text)| (name.clone(), filled(text, labels, *value)));
                let _ = writeln!(test, "      exp_annotations: {}", mapping(&texts.collect()));
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.yaml");
    std::fs::write(&path, &test).unwrap();
    let mut promtool = Command::new("promtool");
    let output = promtool
        .args(["test", "rules"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// JSON is YAML.
fn mapping(labels: &Labels) -> String {
    serde_json::to_string(labels).unwrap()
}

/// An annotation with its templates filled.
fn filled(text: &str, labels: &Labels, value: f64) -> String {
    let mut text = text.replace("{{ $value }}", &value.to_string());
    for (label, value) in labels {
        text = text.replace(&format!("{{{{ $labels.{label} }}}}"), value);
    }
    // As Prometheus does where there is no such label.
    while let Some((before, rest)) = text.clone().split_once("{{ $labels.") {
        let (_, after) = rest.split_once("}}").unwrap();
        text = format!("{before}{after}");
    }
    text
}
