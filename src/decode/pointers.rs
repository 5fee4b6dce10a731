//! Where the fields of a document stand in a record. Knows no value.

use serde::{Deserialize, Serialize};

/// Where the fields of a document stand in a JSON object: JSON pointers (RFC 6901); empty for a field
/// that the records do not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FieldPointers {
    /// Identity: text or a whole number.
    pub id: String,
    /// Headline: text.
    pub title: String,
    /// Body: text.
    pub text: String,
    /// Time of publication.
    pub published_at: String,
    /// Who published it: text.
    pub source: String,
    /// Language tag: text.
    pub language: String,
    /// An object whose entries are kept as attributes.
    pub attributes: String,
}

impl Default for FieldPointers {
    fn default() -> Self {
        let pointer = |name: &str| format!("/{name}");
        Self {
            id: pointer("id"),
            title: pointer("title"),
            text: pointer("text"),
            published_at: pointer("published_at"),
            source: pointer("source"),
            language: pointer("language"),
            attributes: pointer("attributes"),
        }
    }
}
