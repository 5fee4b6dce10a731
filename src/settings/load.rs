//! Where settings come from: the built-in `config/default.toml`, the file of an environment, the file
//! of the command line, then environment variables; the later wins.
//!
//! Owns the merged tree and the origin of each value; must not know what a section means. The names
//! of all keys stand in `config/default.toml`, commented out where they are unset, so that a
//! misspelt key is found here and answered with the nearest one that exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, File, FileFormat, Map, Source, Value, ValueKind};
use serde::de::DeserializeOwned;

use super::SettingsError;

/// Every key with its documentation and its default.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// What environment variables begin with; `TCBERT__KAFKA__TOPIC` is `kafka.topic`.
const PREFIX: &str = "TCBERT__";

/// Names the environment whose file (`config/NAME.toml`) is read between defaults and `--config`.
const ENVIRONMENT_VARIABLE: &str = "TCBERT_ENV";

/// Tables whose keys are the user's own.
const OPEN_TABLES: [&str; 2] = ["kafka.properties", "dead_letter.properties"];

/// Where to look for settings.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    /// The file named on the command line.
    pub file: Option<PathBuf>,
    /// Environment variables.
    pub variables: Vec<(String, String)>,
}

impl Origins {
    /// The process's own environment, and `file` of the command line.
    pub fn of_process(file: Option<PathBuf>) -> Self {
        Self {
            file,
            variables: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .filter(|(name, _)| name.starts_with(PREFIX) || name == ENVIRONMENT_VARIABLE)
                .collect(),
        }
    }
}

/// The merged settings, each value with where it came from.
#[derive(Debug)]
pub(super) struct Tree {
    root: Value,
}

impl Tree {
    /// Reads and merges all origins and refuses keys that do not exist.
    pub(super) fn load(origins: &Origins) -> Result<Self, SettingsError> {
        let known = known_keys(DEFAULT_TOML);
        let mut builder =
            Config::builder().add_source(File::from_str(DEFAULT_TOML, FileFormat::Toml));
        for path in files(origins)? {
            builder = builder.add_source(File::from(path.as_path()).format(FileFormat::Toml));
        }
        let merged = builder
            .add_source(Variables(origins.variables.clone()))
            .build()
            .map_err(describe)?;
        let mut root = merged.cache;
        flatten_open_tables(&mut root);
        refuse_unknown(&root, &known)?;
        Ok(Self { root })
    }

    /// One section as its stage's own type.
    pub(super) fn section<T: DeserializeOwned>(&self, name: &str) -> Result<T, SettingsError> {
        let table = match &self.root.kind {
            ValueKind::Table(table) => table.get(name).cloned(),
            _ => None,
        };
        let value = table.unwrap_or_else(|| Value::from(Map::<String, Value>::new()));
        // Deserialising one key at a time would name the key in every error; the library names it in
        // most, and `locate` finds it for the rest.
        value
            .clone()
            .try_deserialize()
            .map_err(|error| locate::<T>(name, &value, &error))
    }

    /// Where the value of `section.key` came from.
    pub(super) fn origin(&self, section: &str, key: &str) -> String {
        let value = lookup(&self.root, section).and_then(|table| lookup(table, key));
        origin_of(value)
    }
}

fn lookup<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match &value.kind {
        ValueKind::Table(table) => table.get(key),
        _ => None,
    }
}

fn origin_of(value: Option<&Value>) -> String {
    value
        .and_then(Value::origin)
        .unwrap_or("the built-in defaults")
        .to_owned()
}

/// The files to read, in order; one that was named and is missing is an error.
fn files(origins: &Origins) -> Result<Vec<PathBuf>, SettingsError> {
    let mut files = Vec::new();
    let environment = origins
        .variables
        .iter()
        .find(|(name, value)| name == ENVIRONMENT_VARIABLE && !value.is_empty());
    if let Some((_, name)) = environment {
        files.push(Path::new("config").join(format!("{name}.toml")));
    }
    files.extend(origins.file.clone());
    for file in &files {
        if !file.is_file() {
            return Err(SettingsError::MissingFile { file: file.clone() });
        }
        check_syntax(file)?;
    }
    Ok(files)
}

/// Finds errors of syntax first: the parser's own text quotes the line, which may hold a secret.
fn check_syntax(file: &Path) -> Result<(), SettingsError> {
    let unreadable = |reason: String| SettingsError::Unreadable {
        origin: file.display().to_string(),
        reason,
    };
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(error.to_string()))?;
    let Err(error) = toml::from_str::<toml::Table>(&text) else {
        return Ok(());
    };
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    Err(unreadable(format!("line {line}: {}", error.message())))
}

/// All keys that `default.toml` names, `section.key`, those in comments (`# key = value`) included.
fn known_keys(toml: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut known = BTreeSet::new();
    for line in toml.lines() {
        let line = line.trim();
        if let Some(header) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = header.to_owned();
            known.insert(section.clone());
            continue;
        }
        let statement = line.strip_prefix("# ").unwrap_or(line);
        if let Some((key, _)) = statement.split_once(" = ")
            && !key.is_empty()
            && key
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        {
            known.insert(format!("{section}.{key}"));
        }
    }
    known
}

/// Joins `sasl.password = ..` written without quotes below an open table into one dotted key.
fn flatten_open_tables(root: &mut Value) {
    for open in OPEN_TABLES {
        let Some((section, key)) = open.split_once('.') else {
            continue;
        };
        let ValueKind::Table(sections) = &mut root.kind else {
            continue;
        };
        let Some(Value {
            kind: ValueKind::Table(table),
            ..
        }) = sections.get_mut(section)
        else {
            continue;
        };
        if let Some(value) = table.get_mut(key)
            && let ValueKind::Table(entries) = &value.kind
        {
            let mut flat = Map::new();
            flatten("", entries, &mut flat);
            value.kind = ValueKind::Table(flat);
        }
    }
}

fn flatten(prefix: &str, entries: &Map<String, Value>, flat: &mut Map<String, Value>) {
    for (key, value) in entries {
        let path = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        match &value.kind {
            ValueKind::Table(inner) => flatten(&path, inner, flat),
            _ => {
                flat.insert(path, value.clone());
            }
        }
    }
}

fn refuse_unknown(root: &Value, known: &BTreeSet<String>) -> Result<(), SettingsError> {
    let ValueKind::Table(sections) = &root.kind else {
        return Ok(());
    };
    let mut unknown: Vec<(String, String)> = Vec::new();
    for (section, value) in sections {
        let ValueKind::Table(entries) = &value.kind else {
            unknown.push((section.clone(), origin_of(Some(value))));
            continue;
        };
        for (key, value) in entries {
            let path = format!("{section}.{key}");
            if !known.contains(&path) {
                unknown.push((path, origin_of(Some(first_leaf(value)))));
            }
        }
    }
    unknown.sort();
    match unknown.into_iter().next() {
        None => Ok(()),
        Some((key, origin)) => Err(SettingsError::UnknownKey {
            nearest: nearest(&key, known),
            key,
            origin,
        }),
    }
}

/// Tables carry no origin of their own; what stands in them does.
fn first_leaf(value: &Value) -> &Value {
    match &value.kind {
        ValueKind::Table(table) => table.values().next().map_or(value, first_leaf),
        _ => value,
    }
}

/// The known key with the fewest edits, where that is few enough to be a slip.
fn nearest(key: &str, known: &BTreeSet<String>) -> Option<String> {
    known
        .iter()
        .filter(|candidate| candidate.contains('.'))
        .map(|candidate| (edit_distance(key, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= key.len() / 3)
        .map(|(_, candidate)| candidate.clone())
}

/// Levenshtein's distance in bytes.
fn edit_distance(left: &str, right: &str) -> usize {
    let right = right.as_bytes();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.bytes().enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        let mut next = vec![before];
        for (above, r) in row.iter().skip(1).zip(right) {
            before = (diagonal + usize::from(l != *r))
                .min(above + 1)
                .min(before + 1);
            diagonal = *above;
            next.push(before);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

fn describe(error: ConfigError) -> SettingsError {
    match error {
        ConfigError::FileParse { uri, cause } => SettingsError::Unreadable {
            origin: uri.unwrap_or_else(|| "the built-in defaults".to_owned()),
            reason: cause.to_string(),
        },
        other => SettingsError::Unreadable {
            origin: "the configuration".to_owned(),
            reason: other.to_string(),
        },
    }
}

/// What was expected; a secret's own value is left out.
fn reason_of(error: &ConfigError, secret: bool) -> String {
    match error {
        ConfigError::Type { expected, .. } if secret => format!("expected {expected}"),
        ConfigError::Type {
            unexpected,
            expected,
            ..
        } => format!("expected {expected}, got {unexpected}"),
        _ if secret => "it cannot be read".to_owned(),
        ConfigError::At { error, .. } => error.to_string(),
        other => other.to_string(),
    }
}

/// Names the key that cannot be read: the one whose absence lets the section pass.
fn locate<T: DeserializeOwned>(section: &str, value: &Value, error: &ConfigError) -> SettingsError {
    if let ValueKind::Table(entries) = &value.kind {
        for (key, entry) in entries {
            let mut without = entries.clone();
            without.remove(key);
            if Value::from(without).try_deserialize::<T>().is_ok() {
                return SettingsError::WrongType {
                    key: format!("{section}.{key}"),
                    value: shown(key, entry),
                    origin: origin_of(Some(first_leaf(entry))),
                    reason: reason_of(error, is_secret(key)),
                };
            }
        }
    }
    SettingsError::WrongType {
        key: section.to_owned(),
        value: "several values".to_owned(),
        origin: "the configuration".to_owned(),
        reason: error.to_string(),
    }
}

/// The value as the user would recognise it; secrets are never shown.
fn shown(key: &str, value: &Value) -> String {
    if is_secret(key) {
        "(secret)".to_owned()
    } else {
        value.to_string()
    }
}

/// Whether a key's value must stay out of messages.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    !key.ends_with("_file")
        && [
            "password",
            "secret",
            "api_key",
            "token",
            "properties",
            "ssl.key.pem",
        ]
        .iter()
        .any(|part| key.contains(part))
}

/// Environment variables as a source that keeps each one's name as the value's origin.
#[derive(Debug, Clone)]
struct Variables(Vec<(String, String)>);

impl Source for Variables {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let mut sections: Map<String, Value> = Map::new();
        for (name, text) in &self.0 {
            let Some(path) = name.strip_prefix(PREFIX) else {
                continue;
            };
            let origin = format!("the environment variable {name}");
            let path = path.to_ascii_lowercase();
            let mut parts = path.splitn(3, "__");
            let section = parts.next().unwrap_or_default().to_owned();
            let value = Value::new(Some(&origin), ValueKind::String(text.clone()));
            let entry = match (parts.next(), parts.next()) {
                (None, _) => {
                    sections.insert(section, value);
                    continue;
                }
                (Some(key), None) => (key.to_owned(), value),
                (Some(key), Some(rest)) => {
                    // Environment variables cannot hold dots: `sasl_password` is `sasl.password`.
                    let inner = if OPEN_TABLES.contains(&format!("{section}.{key}").as_str()) {
                        rest.replace('_', ".")
                    } else {
                        rest.to_owned()
                    };
                    (key.to_owned(), Value::from(Map::from([(inner, value)])))
                }
            };
            merge(&mut sections, section, entry);
        }
        Ok(sections)
    }
}

fn merge(sections: &mut Map<String, Value>, section: String, (key, value): (String, Value)) {
    let slot = sections
        .entry(section)
        .or_insert_with(|| Value::from(Map::<String, Value>::new()));
    let ValueKind::Table(table) = &mut slot.kind else {
        return;
    };
    match (
        table.get_mut(&key).map(|existing| &mut existing.kind),
        value.kind.clone(),
    ) {
        (Some(ValueKind::Table(existing)), ValueKind::Table(new)) => existing.extend(new),
        _ => {
            table.insert(key, value);
        }
    }
}
