//! Dead letters: records that cannot be processed go to a topic of their own, with why and where
//! from, and can be listed and sent home again.

mod check;
mod client_config;
mod wire;
mod producer;
mod reader;
mod replay;
mod settings;
mod spool;

pub use check::{DeadLetterFindings, check_dead_letters};
pub use producer::DeadLetterProducer;
pub use reader::{DeadLetterFilter, list_dead_letters, visit_dead_letters};
pub use replay::{ReplayOptions, ReplayReport, replay_dead_letters};
pub use settings::DeadLetterSettings;
pub use wire::{CutValue, Rest, StoredDeadLetter};
