//! CloudEvents 1.0 over Kafka: the binary and the structured mode of its protocol binding.
//! Must not know how data is mapped to a document.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::error::{DecodeError, Part, excerpt};
use super::json;
use super::settings::Format;
use crate::source::Header;

/// What the names of attributes begin with among a record's headers.
const HEADER_PREFIX: &str = "ce_";

/// The header that holds the type of the data, or says that the value is a whole event.
const CONTENT_TYPE: &str = "content-type";

/// The only version of the specification that is read.
const VERSION: &str = "1.0";

/// Where an event's attributes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Envelope {
    /// The record is no event.
    None,
    /// In the headers; the value is the data.
    Binary,
    /// In the value, beside the data.
    Structured,
}

/// What an event says about its data.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Event {
    pub(super) id: Option<String>,
    pub(super) source: Option<String>,
    pub(super) time: Option<Timestamp>,
    pub(super) content_type: Option<String>,
    /// Everything else but the version: type, subject, schema, extensions; and the id.
    pub(super) attributes: BTreeMap<String, String>,
}

/// The data inside a structured event.
#[derive(Debug, PartialEq)]
pub(super) enum Data<'a> {
    Json(&'a str),
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
}

/// What data is, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataKind {
    Json,
    Text,
}

/// Where the attributes of a record's event stand, by its headers.
pub(super) fn envelope(format: Format, headers: &[Header]) -> Result<Envelope, DecodeError> {
    if format == Format::Json || headers.is_empty() && format == Format::Auto {
        return Ok(Envelope::None);
    }
    let content_type = header(headers, CONTENT_TYPE)?.unwrap_or_default();
    let media = media_type(content_type);
    if media == "application/cloudevents+json" || media == "application/cloudevents" {
        return Ok(Envelope::Structured);
    }
    if media.starts_with("application/cloudevents") {
        return Err(DecodeError::UnsupportedContentType {
            found: excerpt(content_type),
        });
    }
    if header(headers, "ce_specversion")?.is_some() {
        return Ok(Envelope::Binary);
    }
    match format {
        Format::CloudEvents => Err(DecodeError::NotCloudEvent),
        Format::Auto | Format::Json => Ok(Envelope::None),
    }
}

/// The event whose attributes are headers.
pub(super) fn from_headers(headers: &[Header]) -> Result<Event, DecodeError> {
    let mut attributes = BTreeMap::new();
    for header in headers {
        if let Some(name) = strip_prefix_ignoring_case(&header.name, HEADER_PREFIX)
            && let Some(value) = &header.value
        {
            attributes.insert(name.to_ascii_lowercase(), header_text(value)?.to_owned());
        }
    }
    let content_type = header(headers, CONTENT_TYPE)?.map(str::to_owned);
    event(attributes, content_type)
}

/// The event that a value holds, and its data.
pub(super) fn from_structured(text: &str) -> Result<(Event, Data<'_>), DecodeError> {
    let members: BTreeMap<Cow<'_, str>, &RawValue> = match serde_json::from_str(text) {
        Ok(members) => members,
        Err(error) if error.is_data() => return Err(json::not_an_object(text)),
        Err(error) => return Err(DecodeError::of_json(&error)),
    };
    let mut attributes = BTreeMap::new();
    let (mut data, mut data_base64) = (None, None);
    for (name, raw) in members {
        let raw = raw.get();
        match name.as_ref() {
            _ if raw == "null" => {}
            "data" => data = Some(raw),
            "data_base64" => data_base64 = Some(raw),
            _ => {
                let text = attribute_text(&name, raw)?;
                attributes.insert(name.into_owned(), text);
            }
        }
    }
    let content_type = attributes.remove("datacontenttype");
    let event = event(attributes, content_type)?;
    let data = match (data, data_base64) {
        (Some(_), Some(_)) => {
            return Err(wrong(
                "data",
                "stands beside `data_base64`; send one of them",
            ));
        }
        (None, None) => return Err(wrong("data", "is missing, and so is `data_base64`")),
        (None, Some(raw)) => Data::Bytes(from_base64(raw)?),
        (Some(raw), None) => match data_kind(event.content_type.as_deref())? {
            DataKind::Json => Data::Json(raw),
            DataKind::Text => {
                let text = serde_json::from_str(raw).map_err(|error| {
                    if error.is_data() {
                        wrong("data", "has to be a text, as `datacontenttype` says")
                    } else {
                        DecodeError::of_json(&error)
                    }
                })?;
                Data::Text(Cow::Owned(text))
            }
        },
    };
    Ok((event, data))
}

/// What data of this content type is; JSON where none is given.
pub(super) fn data_kind(content_type: Option<&str>) -> Result<DataKind, DecodeError> {
    let Some(content_type) = content_type.filter(|text| !text.trim().is_empty()) else {
        return Ok(DataKind::Json);
    };
    let unsupported = || DecodeError::UnsupportedContentType {
        found: excerpt(content_type),
    };
    let charset = content_type
        .split(';')
        .skip(1)
        .find_map(|parameter| strip_prefix_ignoring_case(parameter.trim(), "charset="));
    if let Some(charset) = charset {
        let charset = charset.trim_matches('"').to_ascii_lowercase();
        if !matches!(charset.as_str(), "utf-8" | "utf8" | "us-ascii") {
            return Err(unsupported());
        }
    }
    let media = media_type(content_type);
    if media == "application/json" || media == "text/json" || media.ends_with("+json") {
        Ok(DataKind::Json)
    } else if media == "text/plain" {
        Ok(DataKind::Text)
    } else {
        Err(unsupported())
    }
}

/// Checks the attributes that every event has, and takes out those that a document uses.
fn event(
    mut attributes: BTreeMap<String, String>,
    content_type: Option<String>,
) -> Result<Event, DecodeError> {
    match attributes.remove("specversion") {
        None => return Err(wrong("specversion", "is missing")),
        Some(version) if version != VERSION => {
            return Err(wrong(
                "specversion",
                &format!("is {:?}; only 1.0 is read", excerpt(&version)),
            ));
        }
        Some(_) => {}
    }
    for required in ["id", "source", "type"] {
        if attributes
            .get(required)
            .is_none_or(|value| value.trim().is_empty())
        {
            return Err(wrong(required, "is missing or empty"));
        }
    }
    let time = match attributes.remove("time") {
        None => None,
        Some(text) => Some(text.parse::<Timestamp>().map_err(|_| {
            wrong(
                "time",
                &format!("is {:?}, not a time as RFC 3339 writes it", excerpt(&text)),
            )
        })?),
    };
    Ok(Event {
        id: attributes.get("id").cloned(),
        source: attributes.remove("source"),
        time,
        content_type,
        attributes,
    })
}

/// An attribute's value as text; the specification allows text, whole numbers and booleans.
fn attribute_text(name: &str, raw: &str) -> Result<String, DecodeError> {
    if raw.starts_with('"') {
        return serde_json::from_str(raw).map_err(|error| DecodeError::of_json(&error));
    }
    if raw.starts_with(['{', '[']) {
        return Err(wrong(
            &excerpt(name),
            "is an array or an object; attributes are plain values",
        ));
    }
    Ok(raw.to_owned())
}

fn from_base64(raw: &str) -> Result<Vec<u8>, DecodeError> {
    let text: Cow<'_, str> = serde_json::from_str(raw).map_err(|error| {
        if error.is_data() {
            wrong("data_base64", "has to be a text")
        } else {
            DecodeError::of_json(&error)
        }
    })?;
    STANDARD
        .decode(text.as_bytes())
        .map_err(|error| wrong("data_base64", &format!("is not base64: {error}")))
}

/// The value of the last header of this name; names of headers are compared without case.
fn header<'h>(headers: &'h [Header], name: &str) -> Result<Option<&'h str>, DecodeError> {
    let found = headers
        .iter()
        .rev()
        .find(|header| header.name.eq_ignore_ascii_case(name));
    match found.and_then(|header| header.value.as_deref()) {
        None => Ok(None),
        Some(value) => header_text(value).map(Some),
    }
}

fn header_text(value: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(value).map_err(|error| DecodeError::InvalidUtf8 {
        part: Part::Header,
        at: error.valid_up_to(),
    })
}

fn media_type(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

fn strip_prefix_ignoring_case<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn wrong(attribute: &str, reason: &str) -> DecodeError {
    DecodeError::InvalidCloudEvent {
        attribute: attribute.to_owned(),
        reason: reason.to_owned(),
    }
}
