//! How a command fails: one message, and the exit code that tells scripts whose fault it was.

use std::fmt::{self, Display};
use std::process::ExitCode;

use crate::assemble::AssembleError;
use crate::settings::{SettingsError, SettingsErrors};

/// The end of a command that did not do its work.
#[derive(Debug)]
pub(in crate::cli) enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// The work failed: exit code 1.
    Failed(String),
    /// Whoever read standard output has gone: nobody is left to tell, exit code 0 as other filters do.
    ReaderGone,
}

impl Failure {
    /// Wrong usage or configuration.
    pub(in crate::cli) fn usage(error: impl Display) -> Self {
        Self::Usage(error.to_string())
    }

    /// The work failed.
    pub(in crate::cli) fn failed(error: impl Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// Says on standard error what went wrong and gives the exit code.
    pub(in crate::cli) fn report(&self) -> ExitCode {
        let (message, code) = match self {
            Self::Usage(message) => (message, 2),
            Self::Failed(message) => (message, 1),
            Self::ReaderGone => return ExitCode::SUCCESS,
        };
        anstream::eprintln!("{}error:{} {message}", "\u{1b}[1;31m", "\u{1b}[0m");
        ExitCode::from(code)
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::Failed(message) => formatter.write_str(message),
            Self::ReaderGone => formatter.write_str("standard output is closed"),
        }
    }
}

impl From<AssembleError> for Failure {
    fn from(error: AssembleError) -> Self {
        match error {
            AssembleError::EmptyText => Self::usage("the query is empty; say what to look for"),
            error if error.is_configuration() => Self::usage(error),
            error => Self::failed(error),
        }
    }
}

impl From<SettingsErrors> for Failure {
    fn from(errors: SettingsErrors) -> Self {
        Self::usage(errors)
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::usage(error)
    }
}

impl From<std::io::Error> for Failure {
    /// For errors of standard output.
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::ReaderGone
        } else {
            Self::Failed(format!("standard output cannot be written: {error}"))
        }
    }
}
