//! What a command has of the terminal and the system: output, exit codes, signals.

pub(super) mod failure;
pub(super) mod output;
pub(super) mod runtime;
