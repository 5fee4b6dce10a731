//! Decoding: whatever a record holds, the answer is a document, a tombstone or a typed error.

use std::collections::HashSet;

use tcbert_worker::decode::{
    DecodeError, DecodeSettings, Decoded, Decoder, Format, IdFrom, TextRule, compose_text,
};
use tcbert_worker::document::{Generation, RecordPosition, TopicPartition};
use tcbert_worker::source::{Header, SourceRecord};

use super::fuzz;

/// Longest message of an error: it goes into a header.
const LONGEST_MESSAGE: usize = 2_000;

pub(super) const JSON: [&str; 34] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "1e999",
    "-0",
    "1769846400123",
    "\\ud800",
    "\\udc00",
    "\\u0000",
    "\u{feff}",
    "\"id\":",
    "\"title\":",
    "\"text\":",
    "\"published_at\":",
    "\"attributes\":{",
    "\"meta\":{",
    "2026-01-31T08:00:00Z",
    "2026-13-01",
    "[[[[[[[[[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
    "\u{3000}",
    "标题",
    "🙂",
    "18446744073709551616",
    "NaN",
    "\"source\":",
    "\"language\":",
    "  ",
];

const EVENTS: [&str; 26] = [
    "ce_specversion: 1.0\n",
    "ce_id: e\n",
    "ce_source: s\n",
    "ce_type: t\n",
    "ce_time: 2026-01-31T08:00:00Z\n",
    "ce_time: soon\n",
    "content-type: application/json\n",
    "content-type: text/plain\n",
    "charset=gbk",
    "content-type: application/cloudevents+json\n",
    "application/cloudevents-batch+json",
    "\n\n",
    "\"data\":",
    "\"data_base64\":",
    "\"eyJ0aXRsZSI6ImEifQ==\"",
    "\"specversion\":\"1.0\"",
    "\"datacontenttype\":",
    "\"text/plain\"",
    "{",
    "}",
    ",",
    "\"",
    "null",
    "\\ud800",
    "\"title\":\"a\"",
    "+json",
];

fn record(key: Option<&[u8]>, value: &[u8], headers: Vec<Header>) -> SourceRecord {
    SourceRecord {
        position: RecordPosition {
            partition: TopicPartition::new("fuzz", 0),
            offset: 0,
        },
        generation: Generation(1),
        timestamp_ms: None,
        key: key.map(<[u8]>::to_vec),
        value: Some(value.to_vec()),
        headers,
        fault: None,
    }
}

/// Decodes and holds the rules; the answer says what kind of record it was.
fn check(decoder: &Decoder, settings: &DecodeSettings, record: &SourceRecord) -> String {
    let decoded = decoder.decode(record);
    assert_eq!(
        decoded,
        decoder.decode(record),
        "the same record, the same answer"
    );
    match decoded {
        Ok(Decoded::Document(document)) => {
            if let (Some(key), IdFrom::Key) = (&record.key, settings.id_from) {
                assert_eq!(document.id.as_str().as_bytes(), key, "the key is the id");
            }
            assert!(!document.title.trim().is_empty() || !document.text.trim().is_empty());
            let text = compose_text(&document, &settings.text_settings());
            assert!(text.text.chars().count() <= settings.max_text_chars);
            assert!(!text.text.trim().is_empty(), "{document:?} has no text");
            format!(
                "document {} {} {} {} {}",
                document.published_at.is_some(),
                document.source.is_some(),
                document.language.is_some(),
                document.attributes.len().min(5),
                text.cut
            )
        }
        Ok(Decoded::Tombstone(_)) => panic!("a value is no tombstone"),
        Err(error) => {
            let message = error.to_string();
            assert!(
                !message.is_empty() && message.len() <= LONGEST_MESSAGE,
                "{message}"
            );
            let class = error.class();
            assert!(
                class
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || b"_8".contains(&byte)),
                "{class}"
            );
            feature(&error)
        }
    }
}

/// The class, and for syntax errors what was wrong without where.
fn feature(error: &DecodeError) -> String {
    match error {
        DecodeError::InvalidJson { reason } => {
            format!(
                "json {}",
                reason.split(" at line").next().unwrap_or_default()
            )
        }
        DecodeError::WrongType { field, found, .. } => format!("type {field} {found}"),
        DecodeError::InvalidCloudEvent { attribute, .. } if attribute.len() < 16 => {
            format!("event {attribute}")
        }
        other => other.class().to_owned(),
    }
}

fn decoders() -> Vec<(DecodeSettings, Decoder)> {
    let plain = DecodeSettings::default();
    let mut nested = DecodeSettings {
        id_from: IdFrom::Body,
        keep_unmapped: false,
        max_depth: 6,
        time_zone: "+08:00".to_owned(),
        text: TextRule::Body,
        max_text_chars: 16,
        ..DecodeSettings::default()
    };
    nested.fields.title = "/meta/title".to_owned();
    nested.fields.id = "/ids/0".to_owned();
    nested.fields.attributes = "/a~1b".to_owned();
    [plain, nested]
        .map(|settings| (settings.clone(), Decoder::new(&settings).unwrap()))
        .into()
}

#[test]
fn json_records() {
    let decoders = decoders();
    fuzz("decode", &JSON, |input| {
        // Odd lengths come with a key, so that both ways to an id are walked.
        let key = (input.len() % 2 == 1).then_some(&b"n-1"[..]);
        let record = record(key, input, Vec::new());
        let features: Vec<_> = decoders
            .iter()
            .map(|(settings, decoder)| check(decoder, settings, &record))
            .collect();
        features.join(" | ")
    });
}

/// An input is header lines, an empty line, then the value.
#[test]
fn cloud_events() {
    let settings = DecodeSettings {
        format: Format::CloudEvents,
        ..DecodeSettings::default()
    };
    let decoder = Decoder::new(&settings).unwrap();
    fuzz("cloudevents", &EVENTS, |input| {
        let end = input.windows(2).position(|pair| pair == b"\n\n");
        let (lines, value) =
            end.map_or((input, &b""[..]), |end| (&input[..end], &input[end + 2..]));
        let headers = lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                let at = line.iter().position(|byte| *byte == b':');
                Header {
                    name: String::from_utf8_lossy(&line[..at.unwrap_or(line.len())]).into_owned(),
                    value: at.map(|at| line[at + 1..].trim_ascii_start().to_vec()),
                }
            })
            .collect();
        let key = (input.len() % 2 == 1).then_some(&b"k"[..]);
        check(&decoder, &settings, &record(key, value, headers))
    });
}

#[test]
fn the_seeds_reach_documents_and_most_errors() {
    let decoders = decoders();
    let mut classes = HashSet::new();
    for input in super::corpus("decode") {
        let record = record(Some(b"n-1"), &input, Vec::new());
        match decoders[0].1.decode(&record) {
            Ok(_) => drop(classes.insert("document")),
            Err(error) => drop(classes.insert(error.class())),
        }
    }
    assert!(
        classes.contains("document") && classes.len() >= 8,
        "{classes:?}"
    );
}
