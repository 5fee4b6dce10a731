//! What settings look like: which keys there are and what kind of value each takes, read out of
//! `config/default.toml`. Refuses what has another shape; must not know where values come from.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};
use strsim::levenshtein;

use super::error::SettingsError;
use super::origin::{from_environment, origin_of};
use super::secret::shown;

/// Tables whose keys are the user's own.
pub(super) const OPEN_TABLES: [&str; 2] = ["kafka.properties", "dead_letter.properties"];

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A table with keys of ours.
    Section,
    /// A table with keys of the user's.
    Open,
    Text,
    Whole,
    Number,
    Switch,
}

impl Kind {
    fn of(value: &toml::Value) -> Option<Self> {
        match value {
            toml::Value::String(_) => Some(Self::Text),
            toml::Value::Integer(_) => Some(Self::Whole),
            toml::Value::Float(_) => Some(Self::Number),
            toml::Value::Boolean(_) => Some(Self::Switch),
            _ => None,
        }
    }

    /// Whether a value is of this kind. The library would make a number of `true` and cut 10000.7, so
    /// that a slip would become a setting nobody chose; only the environment holds nothing but text.
    fn takes(self, value: &Value) -> bool {
        match (self, &value.kind) {
            (Self::Text, ValueKind::String(_)) | (Self::Switch, ValueKind::Boolean(_)) => true,
            (Self::Whole | Self::Number, kind) if is_whole(kind) => true,
            (Self::Number, ValueKind::Float(_)) => true,
            (Self::Whole, ValueKind::String(text)) if from_environment(value) => {
                text.parse::<i128>().is_ok()
            }
            (Self::Number, ValueKind::String(text)) if from_environment(value) => {
                text.parse::<f64>().is_ok()
            }
            (Self::Switch, ValueKind::String(_)) => from_environment(value),
            _ => false,
        }
    }

    /// The end of the sentence "`key` is 5: ...".
    fn expected(self, path: &str) -> String {
        match self {
            Self::Section | Self::Open => {
                format!("expected a section, whose keys are set one by one ([{path}])")
            }
            Self::Text => "expected a text in quotes".to_owned(),
            Self::Whole => "expected a whole number without quotes".to_owned(),
            Self::Number => "expected a number without quotes".to_owned(),
            Self::Switch => "expected true or false without quotes".to_owned(),
        }
    }
}

fn is_whole(kind: &ValueKind) -> bool {
    matches!(
        kind,
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_)
    )
}

/// Every key with its kind, `section.key`.
#[derive(Debug)]
pub(super) struct Shape {
    kinds: BTreeMap<String, Kind>,
}

impl Shape {
    /// All keys that `toml` names, those in comments (`# key = value`) included.
    pub(super) fn read(toml: &str) -> Self {
        let mut section = String::new();
        let mut kinds = BTreeMap::new();
        for line in toml.lines() {
            let line = line.trim();
            let header = line
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'));
            if let Some(header) = header {
                header.clone_into(&mut section);
                let open = OPEN_TABLES.contains(&header);
                let kind = if open { Kind::Open } else { Kind::Section };
                kinds.insert(section.clone(), kind);
                continue;
            }
            if let Some((key, kind)) = statement(line.strip_prefix("# ").unwrap_or(line)) {
                kinds.insert(format!("{section}.{key}"), kind);
            }
        }
        Self { kinds }
    }

    /// Refuses keys that do not exist, then values of another kind.
    pub(super) fn check(&self, root: &Value) -> Result<(), SettingsError> {
        let mut faults = Vec::new();
        if let ValueKind::Table(sections) = &root.kind {
            self.look_at_all("", sections, &mut faults);
        }
        let unknown = |fault: &SettingsError| matches!(fault, SettingsError::UnknownKey { .. });
        let first = faults.iter().position(unknown).unwrap_or_default();
        faults.into_iter().nth(first).map_or(Ok(()), Err)
    }

    fn look_at_all(
        &self,
        path: &str,
        entries: &Map<String, Value>,
        faults: &mut Vec<SettingsError>,
    ) {
        let sorted: BTreeMap<_, _> = entries.iter().collect();
        for (key, value) in sorted {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            self.look_at(&path, value, faults);
        }
    }

    fn look_at(&self, path: &str, value: &Value, faults: &mut Vec<SettingsError>) {
        match (self.kinds.get(path), &value.kind) {
            (Some(Kind::Open), ValueKind::Table(_)) => {}
            (Some(Kind::Section), ValueKind::Table(entries)) => {
                self.look_at_all(path, entries, faults);
            }
            (Some(kind), _) if kind.takes(value) => {}
            (Some(kind), _) => faults.push(SettingsError::WrongType {
                key: path.to_owned(),
                value: shown(path, value),
                origin: origin_of(Some(value)),
                reason: kind.expected(path),
            }),
            // The keys of a misspelt section lead to the section that was meant.
            (None, ValueKind::Table(entries)) if !path.contains('.') && !entries.is_empty() => {
                self.look_at_all(path, entries, faults);
            }
            (None, _) => faults.push(SettingsError::UnknownKey {
                key: path.to_owned(),
                origin: origin_of(Some(value)),
                nearest: self.nearest(path),
            }),
        }
    }

    /// The known key with the fewest edits, where that is few enough to be a slip.
    fn nearest(&self, key: &str) -> Option<String> {
        self.kinds
            .keys()
            .filter(|candidate| candidate.contains('.') == key.contains('.'))
            .map(|candidate| (levenshtein(key, candidate), candidate))
            .min()
            .filter(|(distance, _)| *distance <= key.chars().count() / 3)
            .map(|(_, candidate)| candidate.clone())
    }
}

/// `key = value` of the documented defaults, with the kind of the value.
fn statement(line: &str) -> Option<(String, Kind)> {
    let (key, _) = line.split_once(" = ")?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if key.is_empty() || !key.chars().all(plain) {
        return None;
    }
    let table: toml::Table = line.parse().ok()?;
    Some((key.to_owned(), Kind::of(table.get(key)?)?))
}
