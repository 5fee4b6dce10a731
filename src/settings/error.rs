//! Why settings cannot be used.

use std::path::PathBuf;

/// A value outside what its key allows, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {value:?} (from {origin}); allowed is {allowed}")]
pub struct OutOfBounds {
    /// Full key.
    pub key: String,
    /// The value; never a secret.
    pub value: String,
    /// File or environment variable.
    pub origin: String,
    /// What is allowed.
    pub allowed: String,
}

/// Why settings cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A file that was named is not there.
    #[error("the configuration file {} does not exist or is no file", file.display())]
    MissingFile {
        /// The file.
        file: PathBuf,
    },
    /// `TCBERT_ENV` names no file.
    #[error(
        "the environment variable TCBERT_ENV is {name:?}, but there is no config/{name}.toml{}",
        if found.is_empty() { String::new() } else { format!("; there are {}", found.join(", ")) }
    )]
    UnknownEnvironment {
        /// What it names.
        name: String,
        /// Names that there are files for.
        found: Vec<String>,
    },
    /// A file that is no TOML.
    #[error("{origin} cannot be read: {reason}")]
    Unreadable {
        /// File or environment variable.
        origin: String,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A key that does not exist.
    #[error(
        "there is no setting `{key}` (from {origin}){}",
        match nearest {
            Some(nearest) => format!("; did you mean {nearest}?"),
            None => "; config/default.toml lists all of them".to_owned(),
        }
    )]
    UnknownKey {
        /// Full key.
        key: String,
        /// File or environment variable.
        origin: String,
        /// The key that was probably meant, as the user would write it.
        nearest: Option<String>,
    },
    /// A value of another type.
    #[error("`{key}` is {value:?} (from {origin}): {reason}")]
    WrongType {
        /// Full key.
        key: String,
        /// The value; never a secret.
        value: String,
        /// File or environment variable.
        origin: String,
        /// What was expected.
        reason: String,
    },
    /// A value out of bounds.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
}

/// Everything that is wrong with the settings, a line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct SettingsErrors(pub Vec<SettingsError>);

impl From<SettingsError> for SettingsErrors {
    fn from(error: SettingsError) -> Self {
        Self(vec![error])
    }
}
