//! Log lines on standard error: which, and how they look.
//! Must not know what is logged.

use std::io::{self, IsTerminal};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

use crate::keys::{Violation, section};

/// The end of the sentence "allowed is ...".
const ALLOWED_LEVELS: &str =
    "error, warn, info, debug or trace, or a list such as \"info,tcbert_worker::store=debug\"";

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

section! {
    /// Log lines on standard error.
    #[derive(Eq)]
    pub struct LogSettings in "log" {
        /// What is logged: "error", "warn", "info", "debug", "trace" or "off", or levels by module such as
        /// "info,tcbert_worker::store=debug".
        level: String = "info".to_owned();
        /// How a line looks: "text" for people, "json" for machines.
        format: LogFormat = LogFormat::Text;
    }
}

impl LogSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        match parse_filter(&self.level) {
            Some(_) => Vec::new(),
            None => vec![Violation::new("level", &self.level, ALLOWED_LEVELS)],
        }
    }
}

/// What libraries say that means nothing to an operator: Qdrant's engine complains of flags that only
/// its server sets, and Kafka's client of a queue that is gone by the time it is closed. A level that
/// is set for them by name goes before these.
const QUIET: &str = "qdrant_edge=error,rdkafka=off";

/// `EnvFilter` takes any word for a module's name; a lone word must be a level.
fn parse_filter(level: &str) -> Option<EnvFilter> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    let well_formed = level.split(',').all(|directive| {
        let level = directive
            .rsplit_once('=')
            .map_or(directive, |(_, level)| level);
        is_level(level.trim())
    });
    if !well_formed {
        return None;
    }
    // Of two directives for one module the later one counts.
    EnvFilter::try_new(format!("{QUIET},{level}")).ok()
}

/// Sends log lines to standard error from here on; once a process.
///
/// # Errors
/// When the level is not one, or log lines already go elsewhere.
pub fn init_logging(settings: &LogSettings) -> Result<(), LogError> {
    let filter =
        parse_filter(&settings.level).ok_or_else(|| LogError::Level(settings.level.clone()))?;
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match settings.format {
        LogFormat::Text => fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .try_init()
        .map_err(|_| LogError::AlreadySet)
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a level.
    #[error("log.level = {0:?} is no level; allowed is {ALLOWED_LEVELS}")]
    Level(String),
    /// Something else in this process receives the log lines.
    #[error("log lines already go elsewhere in this process")]
    AlreadySet,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(level: &str) -> bool {
        let settings = LogSettings {
            level: level.to_owned(),
            ..LogSettings::default()
        };
        settings.violations().is_empty()
    }

    #[test]
    fn levels_and_lists_of_levels_are_allowed() {
        for level in ["info", "WARN", "info,tcbert_worker::store=debug", "off"] {
            assert!(is_allowed(level), "{level:?}");
        }
    }

    #[test]
    fn libraries_are_quiet_unless_they_are_asked_for() {
        let filter = |level| parse_filter(level).unwrap().to_string();
        let plain = filter("info");
        assert!(plain.contains("qdrant_edge=error"), "{plain}");
        assert!(plain.contains("rdkafka=off"), "{plain}");
        let asked = filter("info,qdrant_edge=debug");
        assert!(asked.contains("qdrant_edge=debug"), "{asked}");
        assert!(!asked.contains("qdrant_edge=error"), "{asked}");
    }

    #[test]
    fn what_is_no_level_is_named() {
        for level in ["", "loud", "tcbert_worker=loud", "info,", "a=b=c"] {
            assert!(!is_allowed(level), "{level:?}");
        }
    }
}
