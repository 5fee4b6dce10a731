//! The settings in effect, for people to look at: each with where it came from, secrets hidden.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

use super::Settings;
use super::error::SettingsErrors;
use super::load::{Origins, Tree};
use super::origin::origin_of;
use super::secret::shown;
use super::shape::OPEN_TABLES;

/// One setting in effect.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Effective {
    /// Full key.
    pub key: String,
    /// Its value; `None` where it is left out, never a secret.
    pub value: Option<String>,
    /// The file or environment variable, or the defaults.
    pub origin: String,
}

/// Every setting in effect, in the order in which they are documented.
///
/// # Errors
/// As [`Settings::load`].
pub fn effective(origins: &Origins) -> Result<Vec<Effective>, SettingsErrors> {
    let tree = Tree::load(origins)?;
    Settings::of(&tree)?;
    let mut effective = Vec::new();
    for section in Settings::sections() {
        for key in &section.keys {
            let path = format!("{}.{}", section.name, key.name);
            match (tree.value(section.name, key.name), &key.default) {
                (Some(value), _) => effective.extend(given(path, value)),
                // A section of its own, or no keys of the user's.
                (None, Some(toml::Value::Table(_))) => {}
                (None, default) => effective.push(Effective {
                    key: path,
                    value: default.as_ref().map(|default| match default {
                        toml::Value::String(text) => text.clone(),
                        other => other.to_string(),
                    }),
                    origin: origin_of(None),
                }),
            }
        }
    }
    Ok(effective)
}

/// What was given for a key: a value, or the user's own keys of a table; the keys of our tables are sections.
fn given(key: String, value: &Value) -> Vec<Effective> {
    let one = |key: String, value: &Value| Effective {
        value: Some(shown(&key, value)),
        origin: origin_of(Some(value)),
        key,
    };
    match &value.kind {
        ValueKind::Table(table) if OPEN_TABLES.contains(&key.as_str()) => {
            let sorted: BTreeMap<_, _> = table.iter().collect();
            let entries = sorted.into_iter();
            entries
                .map(|(name, value)| one(format!("{key}.{name}"), value))
                .collect()
        }
        ValueKind::Table(_) => Vec::new(),
        _ => vec![one(key, value)],
    }
}

impl Effective {
    /// Whether nobody has given it.
    pub fn is_default(&self) -> bool {
        self.origin == origin_of(None)
    }
}
