//! What settings look like: which keys are declared and what kind of value each takes. Rejects what has another
//! shape; must not know where values come from.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};
use strsim::levenshtein;

use super::error::SettingsError;
use super::origin::{PREFIX, from_environment, origin_of};
use super::secret::shown;
use crate::keys::Section;

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
    /// All keys that the sections declare.
    pub(super) fn of(sections: &[Section]) -> Self {
        let mut kinds = BTreeMap::new();
        for section in sections {
            kinds.insert(section.name.to_owned(), Kind::Section);
            for key in &section.keys {
                let value = key.default.as_ref().or(key.example.as_ref());
                // A table with a section of its own is declared there.
                if let Some(kind) = value.and_then(Kind::of) {
                    kinds.insert(format!("{}.{}", section.name, key.name), kind);
                }
            }
        }
        for open in OPEN_TABLES {
            kinds.insert(open.to_owned(), Kind::Open);
        }
        Self { kinds }
    }

    /// What is wrong: keys that do not exist first, then values of another kind.
    pub(super) fn faults(&self, root: &Value) -> Vec<SettingsError> {
        let mut faults = Vec::new();
        if let ValueKind::Table(sections) = &root.kind {
            self.look_at_all("", sections, &mut faults);
        }
        faults.sort_by_key(|fault| !matches!(fault, SettingsError::UnknownKey { .. }));
        faults
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
                nearest: self.nearest(path, from_environment(value)),
            }),
        }
    }

    /// The known key with the fewest edits, where that is few enough to be a slip. A variable may lack one of two
    /// underscores.
    fn nearest(&self, key: &str, is_variable: bool) -> Option<String> {
        let flat = |key: &str| key.replace('.', "_");
        let near = || {
            let alike = |known: &&String| known.contains('.') == key.contains('.');
            let known = self.kinds.keys().filter(alike);
            let nearest = known.map(|known| (levenshtein(key, known), known)).min();
            nearest.filter(|(distance, _)| *distance <= key.chars().count() / 3)
        };
        let same = || {
            self.kinds
                .keys()
                .find(|known| is_variable && flat(known) == flat(key))
        };
        let found = same().or_else(|| near().map(|(_, known)| known))?;
        Some(if is_variable {
            let name = found.to_uppercase().replace('.', "__");
            format!("`{found}` ({PREFIX}{name})")
        } else {
            format!("`{found}`")
        })
    }
}
