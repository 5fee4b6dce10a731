//! Where the fields of a document stand in a record. Knows no value.

use crate::keys::section;

section! {
    /// Where the fields of a document stand in the JSON: JSON pointers (RFC 6901), "" for a field that the records do
    /// not have. Missing and null are the same.
    #[derive(Eq)]
    pub struct FieldPointers in "decode.fields" {
        /// Identity: text or a whole number.
        id: String = "/id".to_owned();
        /// Headline: text.
        title: String = "/title".to_owned();
        /// Body: text.
        text: String = "/text".to_owned();
        /// Time of publication: an RFC 3339 time, "YYYY-MM-DD HH:MM:SS", or seconds or milliseconds since 1970.
        published_at: String = "/published_at".to_owned();
        /// Who published it: text.
        source: String = "/source".to_owned();
        /// Language tag: text.
        language: String = "/language".to_owned();
        /// An object whose entries are kept as attributes.
        attributes: String = "/attributes".to_owned();
    }
}
