//! The section `tagging` of the configuration: which taxonomy, how topics are given, what becomes
//! of the embedding. Knows keys and bounds; must not know how a model is run.

use std::path::Path;

use crate::keys::{Declared, Violation, section};
use crate::taxonomy::{MAX_LABELS, Taxonomy, TaxonomyError};

/// Highest number of a prompt.
const MAX_PROMPT: usize = 1000;
/// Fewest tokens that leave room for prompt and text.
const MIN_TOKENS: usize = 32;
/// More tokens than any model of the families reads.
const MAX_TOKENS: usize = 8192;

section! {
    /// Which topics documents get, and what becomes of their embedding.
    pub struct TaggingSettings in "tagging" {
        /// The taxonomy: news, tnews, csldcp, iflytek, thucnews, one of taxonomies_dir, or a file (a path that ends
        /// with .toml).
        taxonomy: String = "news".to_owned();
        /// Folder of further taxonomies; taxonomy = "mine" is looked for in it as mine.toml. "": only those built in.
        taxonomies_dir: String = String::new();
        /// Which of the taxonomy's prompts is used, counted from 0. Another prompt gives other embeddings.
        prompt: usize = 0, in 0..=MAX_PROMPT;
        /// How many labels a result names, best first; 0 names all.
        top_k: usize = 3, in 0..=MAX_LABELS;
        /// A label must be so probable to be named among a result's topics. 0 names the best top_k whatever they are.
        topics_threshold: f64 = 0.0, in 0.0..=1.0;
        /// Below this probability the topic is "other" (0: never). Left out: what the taxonomy says.
        threshold: Option<f64> = None, example 0.0, in 0.0..=1.0;
        /// Divides the scores before they become probabilities; above 1 makes them more even. Left out: what the
        /// taxonomy says.
        temperature: Option<f64> = None, example 1.0, in 0.001..=1000.0;
        /// Whether a label's score on an empty document is subtracted from its score. Left out: what the taxonomy
        /// says.
        calibration: Option<bool> = None, example false;
        /// Tokens of a row, prompt included; longer texts are cut at the end and marked. 32 to 8192; 0: what the model
        /// takes.
        max_tokens: usize = 0;
        /// Whitening file made by `whiten fit`, applied to every embedding. "": none.
        whitening: String = String::new();
    }
}

impl TaggingSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = self.out_of_range();
        if self.taxonomy.trim().is_empty() {
            violations.push(Violation::new("taxonomy", "", "a name or a file"));
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
                "prompt",
                "top_k",
                "topics_threshold",
                "threshold",
                "temperature",
                "taxonomy",
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
