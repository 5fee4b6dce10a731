//! Bytes to documents: size and depth limits, JSON and CloudEvents, the identity of a document.
//!
//! Pure: knows records and documents, neither Kafka's client nor the model. Whatever a record holds,
//! the answer is a document, a tombstone or a typed error; nothing here panics on input.

mod cloud_events;
mod error;
mod fields;
mod json;
mod pointers;
mod settings;
mod text;

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

pub use error::{DecodeError, Part};
pub use pointers::FieldPointers;
pub use settings::{DecodeSettings, Format, IdFrom, InvalidDecodeSettings};
pub use text::{ModelText, TextRule, TextSettings, compose_text};

use crate::document::{Document, DocumentId, is_blank};
use crate::source::{RecordFault, SourceRecord, timestamp};
use cloud_events::{Envelope, Event};
use fields::{Field, FieldValue, Fields};
use json::Mapping;

/// Values of attributes that are held parsed beside their record; more of them are left in it.
const MOST_HELD_VALUES: usize = 64;

/// Bytes of a record beside which nothing is held that stands in it.
const LARGE_VALUE: usize = 64 * 1024;

/// What a record turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// A document to tag.
    Document(Document),
    /// The document of this id is deleted.
    Tombstone(DocumentId),
}

/// Turns records into documents; built once, shared by all workers.
#[derive(Debug, Clone)]
pub struct Decoder {
    format: Format,
    id_from: IdFrom,
    max_value_bytes: usize,
    max_depth: usize,
    time_zone: TimeZone,
    mapping: Mapping,
}

impl Decoder {
    /// A decoder as `settings` describe it.
    ///
    /// # Errors
    /// When a bound, a pointer or the time zone is not what [`DecodeSettings::violations`] allows.
    pub fn new(settings: &DecodeSettings) -> Result<Self, InvalidDecodeSettings> {
        let violations = settings.violations();
        let (Some(mapping), Some(time_zone), true) = (
            Mapping::new(&settings.fields, settings.keep_unmapped).ok(),
            timestamp::zone(&settings.time_zone),
            violations.is_empty(),
        ) else {
            return Err(InvalidDecodeSettings(violations));
        };
        Ok(Self {
            format: settings.format,
            id_from: settings.id_from,
            max_value_bytes: settings.max_value_bytes,
            max_depth: settings.max_depth,
            time_zone,
            mapping,
        })
    }

    /// What `record` says; all of it is checked, but many attributes are left in the record, see
    /// [`Document::left_in_record`].
    ///
    /// # Errors
    /// Everything that makes the record one for the dead letters; trying again gives the same error.
    pub fn decode(&self, record: &SourceRecord) -> Result<Decoded, DecodeError> {
        let mut decoded = self.read(record, MOST_HELD_VALUES)?;
        if let Decoded::Document(document) = &mut decoded
            && record.value.as_ref().map_or(0, Vec::len) > LARGE_VALUE
        {
            document.attributes.clear();
            document.left_in_record = document.left_in_record.max(1);
        }
        Ok(decoded)
    }

    /// As [`decode`](Self::decode), with all attributes.
    ///
    /// # Errors
    /// The same ones.
    pub fn decode_whole(&self, record: &SourceRecord) -> Result<Decoded, DecodeError> {
        self.read(record, usize::MAX)
    }

    fn read(&self, record: &SourceRecord, most: usize) -> Result<Decoded, DecodeError> {
        let Some(value) = &record.value else {
            let key = record
                .key
                .as_deref()
                .ok_or(DecodeError::TombstoneWithoutKey)?;
            return Ok(Decoded::Tombstone(id_of_key(key)?));
        };
        if let Some(RecordFault::TooLarge { bytes, .. }) = &record.fault {
            return Err(DecodeError::Oversized {
                bytes: *bytes,
                limit: self.max_value_bytes,
            });
        }
        if value.len() > self.max_value_bytes {
            return Err(DecodeError::Oversized {
                bytes: value.len(),
                limit: self.max_value_bytes,
            });
        }
        if let Some(RecordFault::NotOneValue(reason)) = &record.fault {
            return Err(DecodeError::InvalidRow {
                reason: reason.to_string(),
            });
        }
        let document = match cloud_events::envelope(self.format, &record.headers)? {
            Envelope::None => {
                let fields = self.json(value, most)?;
                self.document(fields, &Event::default(), record, most)
            }
            Envelope::Binary => {
                let event = cloud_events::from_headers(&record.headers)?;
                let fields = self.data(value, event.content_type.as_deref(), most)?;
                self.document(fields, &event, record, most)
            }
            Envelope::Structured => {
                let text = self.checked_text(value)?;
                let (event, data) = cloud_events::from_structured(text)?;
                match data {
                    cloud_events::Data::Json(data) => {
                        self.document(self.mapping.read(data, most)?, &event, record, most)
                    }
                    cloud_events::Data::Text(data) => {
                        self.document(Fields::of_text(data), &event, record, most)
                    }
                    cloud_events::Data::Bytes(data) => {
                        let fields = self.data(&data, event.content_type.as_deref(), most)?;
                        self.document(fields, &event, record, most)
                    }
                }
            }
        };
        document.map(Decoded::Document)
    }

    /// An event's data by its content type: JSON is mapped, plain text is a body.
    fn data<'a>(
        &self,
        data: &'a [u8],
        content_type: Option<&str>,
        most: usize,
    ) -> Result<Fields<'a>, DecodeError> {
        match cloud_events::data_kind(content_type)? {
            cloud_events::DataKind::Json => self.json(data, most),
            cloud_events::DataKind::Text => Ok(Fields::of_text(Cow::Borrowed(utf8(data)?))),
        }
    }

    fn json<'a>(&self, value: &'a [u8], most: usize) -> Result<Fields<'a>, DecodeError> {
        self.mapping.read(self.checked_text(value)?, most)
    }

    /// JSON text that is UTF-8 and not nested too deeply for a recursive parser.
    fn checked_text<'a>(&self, value: &'a [u8]) -> Result<&'a str, DecodeError> {
        // A schema registry's serialiser writes a zero byte and a schema number before the value.
        if value.first() == Some(&0) {
            return Err(DecodeError::FramedValue);
        }
        let text = utf8(value)?;
        json::check_depth(text, self.max_depth)?;
        Ok(text)
    }

    fn document(
        &self,
        mut fields: Fields<'_>,
        event: &Event,
        record: &SourceRecord,
        most: usize,
    ) -> Result<Document, DecodeError> {
        let title = self
            .text_field(&mut fields, Field::Title)?
            .unwrap_or_default();
        let text = self
            .text_field(&mut fields, Field::Text)?
            .unwrap_or_default();
        if is_blank(&title) && is_blank(&text) {
            return Err(DecodeError::EmptyText {
                title: self.mapping.pointer(Field::Title).to_owned(),
                text: self.mapping.pointer(Field::Text).to_owned(),
            });
        }
        let values = fields.tree_values.saturating_add(event.attributes.len());
        let mut document = Document {
            id: self.document_id(&mut fields, event, record.key.as_deref())?,
            title,
            text,
            published_at: self.published_at(&mut fields, event)?,
            source: self
                .text_field(&mut fields, Field::Source)?
                .or_else(|| event.source.clone()),
            language: self.text_field(&mut fields, Field::Language)?,
            attributes: self.attributes(fields, event)?,
            left_in_record: 0,
        };
        if values > most {
            document.attributes.clear();
            document.left_in_record = values;
        }
        Ok(document)
    }

    /// The body's id and the record's key have to agree; the key serves where the body has none,
    /// the event's id where there is neither.
    fn document_id(
        &self,
        fields: &mut Fields<'_>,
        event: &Event,
        key: Option<&[u8]>,
    ) -> Result<DocumentId, DecodeError> {
        let body = match fields.take(Field::Id) {
            FieldValue::Absent => None,
            FieldValue::Text(id) => Some(id),
            FieldValue::Number(number) if !number.is_f64() => Some(Cow::Owned(number.to_string())),
            other => return Err(self.wrong_type(Field::Id, "text or a whole number", &other)),
        };
        let Some(body) = body else {
            return match (key, &event.id) {
                (Some(key), _) => id_of_key(key),
                (None, Some(id)) => new_id(id, Part::EventId),
                (None, None) => Err(DecodeError::MissingId {
                    pointer: self.mapping.pointer(Field::Id).to_owned(),
                }),
            };
        };
        if let (IdFrom::Key, Some(key)) = (self.id_from, key) {
            let key = id_of_key(key)?;
            if key.as_str() != body {
                return Err(DecodeError::IdMismatch {
                    key: error::excerpt(key.as_str()),
                    body: error::excerpt(&body),
                });
            }
            return Ok(key);
        }
        new_id(&body, Part::BodyId)
    }

    fn published_at(
        &self,
        fields: &mut Fields<'_>,
        event: &Event,
    ) -> Result<Option<Timestamp>, DecodeError> {
        let parsed = match fields.take(Field::PublishedAt) {
            FieldValue::Absent => return Ok(event.time),
            FieldValue::Text(text) if text.trim().is_empty() => return Ok(event.time),
            FieldValue::Text(text) => {
                timestamp::parse(&text, &self.time_zone).ok_or_else(|| error::excerpt(&text))
            }
            FieldValue::Number(number) => {
                timestamp::from_epoch(&number).ok_or_else(|| number.to_string())
            }
            other => {
                let expected = "text or a number";
                return Err(self.wrong_type(Field::PublishedAt, expected, &other));
            }
        };
        parsed.map(Some).map_err(|value| DecodeError::InvalidTime {
            pointer: self.mapping.pointer(Field::PublishedAt).to_owned(),
            value,
        })
    }

    fn text_field(
        &self,
        fields: &mut Fields<'_>,
        field: Field,
    ) -> Result<Option<String>, DecodeError> {
        match fields.take(field) {
            FieldValue::Absent => Ok(None),
            FieldValue::Text(text) => Ok(Some(text.into_owned())),
            other => Err(self.wrong_type(field, "text", &other)),
        }
    }

    fn attributes(
        &self,
        mut fields: Fields<'_>,
        event: &Event,
    ) -> Result<Map<String, Value>, DecodeError> {
        let mapped = fields.take(Field::Attributes);
        let mut attributes = fields.unmapped;
        if self.mapping.keeps_unmapped() {
            for (name, value) in &event.attributes {
                attributes
                    .entry(format!("ce_{name}"))
                    .or_insert_with(|| Value::String(value.clone()));
            }
        }
        match mapped {
            FieldValue::Absent => {}
            FieldValue::Tree(Value::Object(object)) => attributes.extend(object),
            other => return Err(self.wrong_type(Field::Attributes, "an object", &other)),
        }
        attributes.sort_keys();
        Ok(attributes)
    }

    fn wrong_type(
        &self,
        field: Field,
        expected: &'static str,
        found: &FieldValue<'_>,
    ) -> DecodeError {
        DecodeError::WrongType {
            field: field.name(),
            pointer: self.mapping.pointer(field).to_owned(),
            expected,
            found: found.kind(),
        }
    }
}

/// The value as text, without a byte order mark.
fn utf8(value: &[u8]) -> Result<&str, DecodeError> {
    let text = std::str::from_utf8(value).map_err(|error| DecodeError::InvalidUtf8 {
        part: Part::Value,
        at: error.valid_up_to(),
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn id_of_key(key: &[u8]) -> Result<DocumentId, DecodeError> {
    let key = std::str::from_utf8(key).map_err(|error| DecodeError::InvalidUtf8 {
        part: Part::Key,
        at: error.valid_up_to(),
    })?;
    new_id(key, Part::Key)
}

fn new_id(id: &str, part: Part) -> Result<DocumentId, DecodeError> {
    DocumentId::new(id).map_err(|reason| DecodeError::InvalidId { part, reason })
}

#[cfg(test)]
mod tests;
