//! How an export compared with the checkpoint that it came from, as `bundle.toml` tells. Pure.

use serde::Deserialize;

/// How the export compared with its checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Verification {
    /// `verified` when the export's answers matched; anything else counts as unverified.
    pub status: String,
    /// Largest difference of a label word's log-probability.
    pub max_log_prob_difference: Option<f64>,
    /// Smallest cosine of the two embeddings of a sentence.
    pub min_cosine: Option<f64>,
    /// Share of the clear sentences that kept their label, 0 to 1.
    pub same_label: Option<f64>,
}

impl Verification {
    /// What is to be known before the bundle is used; `None` where it matched its checkpoint.
    pub fn doubt(&self) -> Option<String> {
        if self.status == "verified" {
            return None;
        }
        let parts: Vec<String> = [
            (
                "largest difference of a log probability",
                self.max_log_prob_difference,
            ),
            ("smallest cosine", self.min_cosine),
            ("share of the same label", self.same_label),
        ]
        .into_iter()
        .filter_map(|(what, value)| value.map(|value| format!("{what} {value}")))
        .collect();
        Some(if parts.is_empty() {
            "the bundle was never compared with the checkpoint it was exported from".to_owned()
        } else {
            format!(
                "the bundle missed the limits of its precision when it was compared with its checkpoint: {}",
                parts.join(", ")
            )
        })
    }
}
