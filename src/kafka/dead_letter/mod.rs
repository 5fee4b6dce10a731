//! Dead letters: records that cannot be processed go to a topic of their own, with why and where
//! from, and can be listed and sent home again.

mod letter;
mod producer;
mod reader;
mod settings;
mod spool;

pub use letter::{CutValue, StoredDeadLetter};
pub use producer::DeadLetterProducer;
pub use reader::{
    DeadLetterFilter, ReplayReport, list_dead_letters, replay_dead_letters, visit_dead_letters,
};
pub use settings::DeadLetterSettings;
