//! All settings of the worker, composed of what each stage owns.
//!
//! Settings are read once, at the edge; stages get built values. The only place that names `config`.

mod document;
mod effective;
mod error;
mod load;
mod origin;
mod secret;
mod shape;

pub use document::{configuration_page, default_toml};
pub use effective::{Effective, effective};
pub use error::{OutOfBounds, SettingsError, SettingsErrors};
pub use load::Origins;

use crate::batch::BatchSettings;
use crate::decode::{DecodeSettings, FieldPointers};
use crate::kafka::{DeadLetterSettings, KafkaSettings};
use crate::keys::{Declared, Section, Violation};
use crate::model::ModelSettings;
use crate::pipeline::PipelineSettings;
use crate::score::TaggingSettings;
use crate::source::files::BackfillSettings;
use crate::store::StoreSettings;
use crate::telemetry::{AdminSettings, LogSettings};
use load::Tree;
use shape::Shape;

/// Everything that can be configured; each field is a section of `config/default.toml`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Broker, topics, group.
    pub kafka: KafkaSettings,
    /// How dead letters are sent.
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
    /// A file that cannot be read, or all that is wrong: keys that do not exist and values of another type, else
    /// values that cannot be read or are out of bounds; each with the key, the value, where it came from and what is allowed.
    pub fn load(origins: &Origins) -> Result<Self, SettingsErrors> {
        Self::of(&Tree::load(origins)?)
    }

    fn of(tree: &Tree) -> Result<Self, SettingsErrors> {
        let faults = Shape::of(&Self::sections()).faults(tree.root());
        if !faults.is_empty() {
            return Err(SettingsErrors(faults));
        }
        let mut faults = Vec::new();
        let mut settings = Self {
            kafka: tree.section_or_default(&mut faults),
            dead_letter: tree.section_or_default(&mut faults),
            decode: tree.section_or_default(&mut faults),
            tagging: tree.section_or_default(&mut faults),
            batch: tree.section_or_default(&mut faults),
            model: tree.section_or_default(&mut faults),
            store: tree.section_or_default(&mut faults),
            pipeline: tree.section_or_default(&mut faults),
            backfill: tree.section_or_default(&mut faults),
            admin: tree.section_or_default(&mut faults),
            log: tree.section_or_default(&mut faults),
        };
        faults.extend(settings.out_of_bounds(tree));
        if !faults.is_empty() {
            return Err(SettingsErrors(faults));
        }
        settings.batch.resolve(settings.model.on_gpu());
        Ok(settings)
    }

    /// All sections, in the order in which they are documented.
    pub fn sections() -> Vec<Section> {
        vec![
            KafkaSettings::section(),
            DeadLetterSettings::section(),
            DecodeSettings::section(),
            FieldPointers::section(),
            TaggingSettings::section(),
            BatchSettings::section(),
            ModelSettings::section(),
            StoreSettings::section(),
            PipelineSettings::section(),
            BackfillSettings::section(),
            LogSettings::section(),
            AdminSettings::section(),
        ]
    }

    fn out_of_bounds(&self, tree: &Tree) -> Vec<SettingsError> {
        let violations: [(&str, Vec<Violation>); 11] = [
            (KafkaSettings::NAME, self.kafka.violations()),
            (DeadLetterSettings::NAME, self.dead_letter.violations()),
            (DecodeSettings::NAME, self.decode.violations()),
            (TaggingSettings::NAME, self.tagging.violations()),
            (BatchSettings::NAME, self.batch.out_of_range()),
            (ModelSettings::NAME, self.model.violations()),
            (StoreSettings::NAME, self.store.violations()),
            (PipelineSettings::NAME, self.pipeline.out_of_range()),
            (BackfillSettings::NAME, self.backfill.violations()),
            (AdminSettings::NAME, self.admin.violations()),
            (LogSettings::NAME, self.log.violations()),
        ];
        let found = violations.into_iter().flat_map(|(section, violations)| {
            let violations = violations.into_iter();
            violations.map(move |violation| out_of_bounds(section, violation, tree).into())
        });
        found.collect()
    }
}

fn out_of_bounds(section: &str, violation: Violation, tree: &Tree) -> OutOfBounds {
    OutOfBounds {
        origin: tree.origin(section, &violation.key),
        key: format!("{section}.{}", violation.key),
        value: if secret::is_secret(&violation.key) {
            "(secret)".to_owned()
        } else {
            violation.value
        },
        allowed: violation.allowed,
    }
}

#[cfg(test)]
mod tests;
