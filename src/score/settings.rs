//! The section `tagging` of the configuration: which taxonomy, how topics are given, what becomes
//! of the embedding. Knows keys and bounds; must not know how a model is run.

use std::path::Path;

use serde::Deserialize;

use crate::bounds::{Violation, check_range};
use crate::taxonomy::{MAX_LABELS, Taxonomy, TaxonomyError};

/// Highest number of a prompt.
const MAX_PROMPT: usize = 1000;
/// Fewest tokens that leave room for prompt and text.
const MIN_TOKENS: usize = 32;
/// More tokens than any model of the families reads.
const MAX_TOKENS: usize = 8192;

/// The section `tagging`; every key is described in `config/default.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaggingSettings {
    /// Name or file of the taxonomy.
    pub taxonomy: String,
    /// Folder of further taxonomies; empty: those built in.
    pub taxonomies_dir: String,
    /// Which of the taxonomy's prompts, from 0.
    pub prompt: usize,
    /// How many labels a result names; 0: all.
    pub top_k: usize,
    /// Least probability of a label that a result names beside its topic.
    pub topics_threshold: f64,
    /// Below this probability the topic is `other`, instead of what the taxonomy says.
    pub threshold: Option<f64>,
    /// Divides the scores, instead of what the taxonomy says.
    pub temperature: Option<f64>,
    /// Whether labels are calibrated on an empty document, instead of what the taxonomy says.
    pub calibration: Option<bool>,
    /// Tokens of a row, prompt included; 0: what the model takes.
    pub max_tokens: usize,
    /// A whitening file for the embeddings; empty: none.
    pub whitening: String,
}

impl Default for TaggingSettings {
    fn default() -> Self {
        Self {
            taxonomy: "news".to_owned(),
            taxonomies_dir: String::new(),
            prompt: 0,
            top_k: 3,
            topics_threshold: 0.0,
            threshold: None,
            temperature: None,
            calibration: None,
            max_tokens: 0,
            whitening: String::new(),
        }
    }
}

impl TaggingSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        if self.taxonomy.trim().is_empty() {
            violations.push(Violation::new("taxonomy", "", "a name or a file"));
        }
        check_range(&mut violations, "prompt", self.prompt, 0, MAX_PROMPT);
        check_range(&mut violations, "top_k", self.top_k, 0, MAX_LABELS);
        let least = self.topics_threshold;
        check_range(&mut violations, "topics_threshold", least, 0.0, 1.0);
        if let Some(threshold) = self.threshold {
            check_range(&mut violations, "threshold", threshold, 0.0, 1.0);
        }
        if let Some(temperature) = self.temperature {
            check_range(&mut violations, "temperature", temperature, 0.001, 1000.0);
        }
        if self.max_tokens != 0 && !(MIN_TOKENS..=MAX_TOKENS).contains(&self.max_tokens) {
            violations.push(Violation::new(
                "max_tokens",
                self.max_tokens,
                format!("0 (what the model takes) or a number from {MIN_TOKENS} to {MAX_TOKENS}"),
            ));
        }
        violations
    }

    /// Loads the taxonomy that is named.
    ///
    /// # Errors
    /// When there is none of that name, or it is not a valid one.
    pub fn load_taxonomy(&self) -> Result<Taxonomy, TaxonomyError> {
        let folder = Some(self.taxonomies_dir.as_str()).filter(|folder| !folder.is_empty());
        Taxonomy::load(&self.taxonomy, folder.map(Path::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_the_settings() {
        assert!(TaggingSettings::default().violations().is_empty());
        let wrong = TaggingSettings {
            taxonomy: " ".to_owned(),
            prompt: MAX_PROMPT + 1,
            top_k: MAX_LABELS + 1,
            topics_threshold: -0.1,
            threshold: Some(1.5),
            temperature: Some(0.0),
            max_tokens: 8,
            ..TaggingSettings::default()
        };
        let keys: Vec<String> = wrong
            .violations()
            .into_iter()
            .map(|wrong| wrong.key)
            .collect();
        assert_eq!(
            keys,
            [
                "taxonomy",
                "prompt",
                "top_k",
                "topics_threshold",
                "threshold",
                "temperature",
                "max_tokens"
            ]
        );
    }

    #[test]
    fn keys_that_are_left_out_have_defaults_and_unknown_ones_are_refused() {
        let settings: TaggingSettings = toml::from_str("threshold = 0.3\ntop_k = 0").unwrap();
        assert_eq!(settings.threshold, Some(0.3));
        assert_eq!(settings.taxonomy, "news");
        assert!(toml::from_str::<TaggingSettings>("treshold = 0.3").is_err());
    }
}
