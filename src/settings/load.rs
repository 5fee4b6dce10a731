//! Where settings come from: the file of an environment, the file of the command line, then environment variables;
//! the later wins, and what none of them names has its default.
//!
//! Owns the merged tree and the origin of each value; must not know what a section means.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, File, FileFormat, Map, Source, Value, ValueKind};
use serde::de::DeserializeOwned;

use super::error::SettingsError;
use super::origin::{OF_VARIABLE, PREFIX, origin_of};
use super::secret::{is_secret, shown};
use super::shape::OPEN_TABLES;
use crate::keys::Declared;
use crate::model::search_roots;

/// Names the environment whose file (`config/NAME.toml`) is read between defaults and `--config`.
const ENVIRONMENT_VARIABLE: &str = "TCBERT_ENV";
/// What variables of ours begin with.
const OURS: &str = "TCBERT_";
/// How those of the tests and tools begin, which are no settings.
const OF_TOOLS: [&str; 10] = [
    "TCBERT_DATA",
    "TCBERT_FUZZ_",
    "TCBERT_KAFKA_CACHE",
    "TCBERT_KAFKA_HEAP_MB",
    "TCBERT_KAFKA_OPTIONS",
    "TCBERT_SKIP_PREREQUISITES",
    "TCBERT_SOAK",
    "TCBERT_TEST_",
    "TCBERT_UPDATE",
    "TCBERT_WORKER_BIN",
];

/// Where to look for settings.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    /// The file named on the command line.
    pub file: Option<PathBuf>,
    /// Environment variables.
    pub variables: Vec<(String, String)>,
    /// Names of variables that look like ours and are none.
    pub strangers: Vec<String>,
}

impl Origins {
    /// The process's own environment, and `file` of the command line.
    ///
    /// # Errors
    /// Where a variable of ours is no UTF-8.
    pub fn of_process(file: Option<PathBuf>) -> Result<Self, SettingsError> {
        Ok(Self {
            file,
            variables: variables(std::env::vars_os())?,
            strangers: std::env::vars_os()
                .filter_map(|(name, _)| stranger(&name))
                .collect(),
        })
    }
}

/// A name that looks like one of ours and is none: a slip in what begins it would leave the default in force.
fn stranger(name: &OsStr) -> Option<String> {
    let name = name.to_str()?;
    let is_known = name.starts_with(PREFIX)
        || name == ENVIRONMENT_VARIABLE
        || OF_TOOLS.iter().any(|known| name.starts_with(known));
    (name.starts_with(OURS) && !is_known).then(|| name.to_owned())
}

/// Those of the variables that concern us. One that cannot be read is refused: dropped in silence, the
/// default would be used instead.
fn variables(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, SettingsError> {
    all.map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.starts_with(PREFIX) || name == ENVIRONMENT_VARIABLE)
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(SettingsError::Unreadable {
                origin: format!("{OF_VARIABLE}{name}"),
                reason: "its value is not UTF-8".to_owned(),
            }),
        })
        .collect()
}

/// The merged settings, each value with where it came from.
#[derive(Debug)]
pub(super) struct Tree {
    root: Value,
}

impl Tree {
    /// Reads and merges all origins.
    pub(super) fn load(origins: &Origins) -> Result<Self, SettingsError> {
        let mut builder = Config::builder();
        for path in files(origins)? {
            builder = builder.add_source(Given::read(&path)?);
        }
        let merged = builder
            .add_source(Variables(origins.variables.clone()))
            .build()
            .map_err(describe)?;
        let mut root = merged.cache;
        flatten_open_tables(&mut root);
        Ok(Self { root })
    }

    /// Everything that was given.
    pub(super) fn root(&self) -> &Value {
        &self.root
    }

    /// What was given for `section.key`; the key may lead into a table below the section.
    pub(super) fn value(&self, section: &str, key: &str) -> Option<&Value> {
        lookup(lookup(&self.root, section)?, key)
    }

    /// One section as its stage's own type. Where it cannot be read, that is added to `faults`.
    pub(super) fn section_or_default<T: Declared>(&self, faults: &mut Vec<SettingsError>) -> T {
        let name = T::NAME;
        let table = match &self.root.kind {
            ValueKind::Table(table) => table.get(name).cloned(),
            _ => None,
        };
        let value = table.unwrap_or_else(|| Value::from(Map::<String, Value>::new()));
        // Deserialising one key at a time would name the key in every error; the library names it in
        // most, and `locate` finds it for the rest.
        value.clone().try_deserialize().unwrap_or_else(|error| {
            faults.push(locate::<T>(name, &value, &error));
            T::default()
        })
    }

    /// Where the value of `section.key` came from; the key may lead into a table below the section.
    pub(super) fn origin(&self, section: &str, key: &str) -> String {
        origin_of(self.value(section, key))
    }
}

/// Keys of an open table hold dots themselves, others are a path through tables.
fn lookup<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let ValueKind::Table(table) = &value.kind else {
        return None;
    };
    table.get(key).or_else(|| {
        let (head, rest) = key.split_once('.')?;
        lookup(table.get(head)?, rest)
    })
}

/// The files to read, in order.
fn files(origins: &Origins) -> Result<Vec<PathBuf>, SettingsError> {
    let environment = origins
        .variables
        .iter()
        .find(|(name, value)| name == ENVIRONMENT_VARIABLE && !value.is_empty())
        .map(|(_, name)| file_of_environment(name))
        .transpose()?;
    Ok(environment
        .into_iter()
        .chain(origins.file.clone())
        .collect())
}

/// `config/NAME.toml` of the current folder, or above the program.
fn file_of_environment(name: &str) -> Result<PathBuf, SettingsError> {
    let folders = std::iter::once(PathBuf::new()).chain(search_roots());
    let folders: Vec<PathBuf> = folders.map(|root| root.join("config")).collect();
    let mut files = folders
        .iter()
        .map(|folder| folder.join(format!("{name}.toml")));
    if let Some(file) = files.find(|file| file.is_file()) {
        return Ok(file);
    }
    let entries = folders.iter().find_map(|folder| folder.read_dir().ok());
    let stems = entries.into_iter().flatten().filter_map(|entry| {
        let path = entry.ok()?.path();
        let is_toml = path
            .extension()
            .is_some_and(|extension| extension == "toml");
        let stem = path.file_stem()?.to_str()?.to_owned();
        (is_toml && stem != "default").then_some(stem)
    });
    let mut found: Vec<String> = stems.collect();
    found.sort();
    Err(SettingsError::UnknownEnvironment {
        name: name.to_owned(),
        found,
    })
}

/// A file whose values name it as the user did; the library would name it relative to the current
/// folder.
#[derive(Debug, Clone)]
struct Given {
    name: String,
    text: String,
}

impl Given {
    /// One that is missing or no TOML is an error.
    fn read(file: &Path) -> Result<Self, SettingsError> {
        if !file.is_file() {
            return Err(SettingsError::MissingFile {
                file: file.to_owned(),
            });
        }
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| SettingsError::Unreadable {
            origin: name.clone(),
            reason: error.to_string(),
        })?;
        check_syntax(&name, &text)?;
        Ok(Self { name, text })
    }
}

impl Source for Given {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let values = File::from_str(&self.text, FileFormat::Toml).collect()?;
        Ok(named(values, &self.name))
    }
}

fn named(values: Map<String, Value>, origin: &str) -> Map<String, Value> {
    let name = |(key, value): (String, Value)| {
        let value = match value.kind {
            ValueKind::Table(inner) => Value::from(named(inner, origin)),
            kind => Value::new(Some(&origin.to_owned()), kind),
        };
        (key, value)
    };
    values.into_iter().map(name).collect()
}

/// Finds errors of syntax first: the parser's own text quotes the line, which may hold a secret.
fn check_syntax(name: &str, text: &str) -> Result<(), SettingsError> {
    let Err(error) = toml::from_str::<toml::Table>(text) else {
        return Ok(());
    };
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
    Err(SettingsError::Unreadable {
        origin: name.to_owned(),
        reason: format!("line {line}: {}", error.message()),
    })
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
                    origin: origin_of(Some(entry)),
                    reason: allowed_words::<T>(key, entry)
                        .unwrap_or_else(|| reason_of(error, is_secret(key))),
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

/// What the key allows, where it allows only certain words. Another format's reader is asked: the
/// library's own says only that the word is none of them.
fn allowed_words<T: DeserializeOwned>(key: &str, value: &Value) -> Option<String> {
    let ValueKind::String(word) = &value.kind else {
        return None;
    };
    let mut section = toml::Table::new();
    section.insert(key.to_owned(), toml::Value::from(word.as_str()));
    let error = section.try_into::<T>().err()?;
    let message = error.message().lines().next().unwrap_or_default();
    let (_, words) = message
        .strip_prefix("unknown variant ")?
        .split_once(", expected ")?;
    Some(format!("allowed is {}", words.replace('`', "\"")))
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
            let origin = format!("{OF_VARIABLE}{name}");
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

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn variables_that_look_like_ours_and_are_none_are_named() {
        for (name, expected) in [
            ("TCBERT_KAFKA__TOPIC", true),
            ("TCBERT__KAFKA__TOPIC", false),
            ("TCBERT_ENV", false),
            ("TCBERT_TEST_QDRANT_URL", false),
            ("TCBERT_SOAK", false),
            ("TCBERTX", false),
        ] {
            assert_eq!(stranger(OsStr::new(name)).is_some(), expected, "{name}");
        }
    }

    #[test]
    fn a_variable_that_is_no_text_is_named() {
        let value = OsString::from_vec(vec![b'a', 0xff]);
        let error = variables([("TCBERT__KAFKA__TOPIC".into(), value.clone())].into_iter());
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("TCBERT__KAFKA__TOPIC") && text.contains("UTF-8"),
            "{text}"
        );
        let other = variables([("OTHER".into(), value)].into_iter());
        assert_eq!(other, Ok(Vec::new()));
    }
}
