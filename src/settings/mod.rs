//! All settings of the worker, composed of what each stage owns.
//!
//! Settings are read once, at the edge; stages get built values. The only place that names `config`.

mod error;
mod load;
mod origin;
mod secret;
mod shape;

pub use error::{OutOfBounds, SettingsError};
pub use load::{DEFAULT_TOML, Origins};

use crate::batch::BatchSettings;
use crate::bounds::Violation;
use crate::decode::DecodeSettings;
use crate::kafka::{DeadLetterSettings, KafkaSettings};
use crate::model::ModelSettings;
use crate::pipeline::PipelineSettings;
use crate::score::TaggingSettings;
use crate::source::files::BackfillSettings;
use crate::store::StoreSettings;
use crate::telemetry::{AdminSettings, LogSettings};

/// Everything that can be configured; each field is a section of `config/default.toml`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Broker, topics, group.
    pub kafka: KafkaSettings,
    /// Where refused records go.
    pub dead_letter: DeadLetterSettings,
    /// How records become documents.
    pub decode: DecodeSettings,
    /// Taxonomy, thresholds, prompt.
    pub tagging: TaggingSettings,
    /// How documents are grouped for the model.
    pub batch: BatchSettings,
    /// Bundle, device, threads.
    pub model: ModelSettings,
    /// Collection and how it is written.
    pub store: StoreSettings,
    /// Bounds of the whole.
    pub pipeline: PipelineSettings,
    /// Bounded runs.
    pub backfill: BackfillSettings,
    /// Health and metrics.
    pub admin: AdminSettings,
    /// Log lines.
    pub log: LogSettings,
}

impl Settings {
    /// Reads all origins, checks names, types and bounds.
    ///
    /// # Errors
    /// The first key that does not exist or cannot be read, or all values that are out of bounds;
    /// each with the key, the value, where it came from and what is allowed.
    pub fn load(origins: &Origins) -> Result<Self, SettingsError> {
        let tree = load::Tree::load(origins)?;
        let mut settings = Self {
            kafka: tree.section("kafka")?,
            dead_letter: tree.section("dead_letter")?,
            decode: tree.section("decode")?,
            tagging: tree.section("tagging")?,
            batch: tree.section("batch")?,
            model: tree.section("model")?,
            store: tree.section("store")?,
            pipeline: tree.section("pipeline")?,
            backfill: tree.section("backfill")?,
            admin: tree.section("admin")?,
            log: tree.section("log")?,
        };
        settings.check(&tree)?;
        settings.batch.resolve(settings.model.on_gpu());
        Ok(settings)
    }

    fn check(&self, tree: &load::Tree) -> Result<(), SettingsError> {
        let mut out_of_bounds = Vec::new();
        let mut gather = |section: &str, violations: Vec<Violation>| {
            out_of_bounds.extend(violations.into_iter().map(|violation| OutOfBounds {
                origin: tree.origin(section, &violation.key),
                key: format!("{section}.{}", violation.key),
                value: if secret::is_secret(&violation.key) {
                    "(secret)".to_owned()
                } else {
                    violation.value
                },
                allowed: violation.allowed,
            }));
        };
        gather("kafka", noted(|violations| self.kafka.validate(violations)));
        gather(
            "decode",
            noted(|violations| self.decode.validate(violations)),
        );
        gather(
            "dead_letter",
            noted(|violations| self.dead_letter.validate(violations)),
        );
        gather("tagging", self.tagging.violations());
        gather("batch", self.batch.violations());
        gather("model", self.model.violations());
        gather("store", noted(|violations| self.store.validate(violations)));
        gather(
            "pipeline",
            noted(|violations| self.pipeline.validate(violations)),
        );
        gather(
            "backfill",
            noted(|violations| self.backfill.validate(violations)),
        );
        gather("admin", self.admin.violations());
        gather("log", self.log.violations());
        if out_of_bounds.is_empty() {
            Ok(())
        } else {
            Err(SettingsError::OutOfBounds(out_of_bounds))
        }
    }
}

fn noted(check: impl FnOnce(&mut Vec<Violation>)) -> Vec<Violation> {
    let mut violations = Vec::new();
    check(&mut violations);
    violations
}

#[cfg(test)]
mod tests;
