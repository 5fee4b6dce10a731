//! What decoding accepts, what it refuses and how it says so.

mod cloud_events;
mod properties;

use serde_json::json;

use super::*;
use crate::document::{Generation, RecordPosition, TopicPartition};
use crate::source::{Header, RecordFault};

fn record(key: Option<&str>, value: Option<&[u8]>, headers: &[(&str, &str)]) -> SourceRecord {
    SourceRecord {
        position: RecordPosition {
            partition: TopicPartition::new("news", 0),
            offset: 7,
        },
        generation: Generation(1),
        timestamp_ms: Some(0),
        key: key.map(|key| key.as_bytes().to_vec()),
        value: value.map(<[u8]>::to_vec),
        headers: headers
            .iter()
            .map(|(name, value)| Header {
                name: (*name).to_owned(),
                value: Some(value.as_bytes().to_vec()),
            })
            .collect(),
        fault: None,
    }
}

fn decoder(change: impl FnOnce(&mut DecodeSettings)) -> Decoder {
    let mut settings = DecodeSettings::default();
    change(&mut settings);
    Decoder::new(&settings).unwrap()
}

#[test]
fn what_the_source_could_not_read_is_refused_in_its_words() {
    let mut row = record(None, Some(b"3,too,few"), &[]);
    row.fault = Some(RecordFault::NotOneValue("the row has 3 cells".into()));
    let error = decoder(|_| {}).decode(&row).unwrap_err();
    assert_eq!(error.class(), "invalid_row");
    assert_eq!(error.to_string(), "the row has 3 cells");
}

/// Decodes a value without headers by the default settings.
fn decode(key: Option<&str>, value: &str) -> Result<Document, DecodeError> {
    document(&decoder(|_| {}), &record(key, Some(value.as_bytes()), &[]))
}

fn document(decoder: &Decoder, record: &SourceRecord) -> Result<Document, DecodeError> {
    match decoder.decode(record)? {
        Decoded::Document(document) => Ok(document),
        Decoded::Tombstone(id) => panic!("{id} is a tombstone"),
    }
}

fn class(key: Option<&str>, value: &str) -> &'static str {
    decode(key, value).unwrap_err().class()
}

#[test]
fn a_full_record() {
    let document = decode(
        Some("n-1"),
        r#"{"id":"n-1","title":"标\u9898","text":"正文","published_at":"2026-01-31T08:00:00+08:00",
            "source":"新华社","language":"zh","attributes":{"section":"要闻"},"views":12}"#,
    )
    .unwrap();
    assert_eq!(document.id.as_str(), "n-1");
    assert_eq!(document.title, "标题");
    assert_eq!(document.text, "正文");
    assert_eq!(
        document.published_at.unwrap().to_string(),
        "2026-01-31T00:00:00Z"
    );
    assert_eq!(document.source.as_deref(), Some("新华社"));
    assert_eq!(document.language.as_deref(), Some("zh"));
    assert_eq!(document.attributes["section"], json!("要闻"));
    assert_eq!(document.attributes["views"], json!(12));
    assert_eq!(document.attributes.len(), 2);
}

#[test]
fn unmapped_fields_can_be_dropped() {
    let decoder = decoder(|settings| settings.keep_unmapped = false);
    let value = br#"{"title":"a","views":{"deep":[1,2]},"attributes":{"kept":true}}"#;
    let document = document(&decoder, &record(Some("k"), Some(value), &[])).unwrap();
    assert_eq!(
        document.attributes,
        Map::from_iter([("kept".to_owned(), json!(true))])
    );
}

#[test]
fn null_is_missing() {
    let document = decode(
        Some("k"),
        r#"{"id":null,"title":"a","text":null,"published_at":null,"source":null,"language":null,"attributes":null}"#,
    )
    .unwrap();
    assert_eq!(document.id.as_str(), "k");
    assert_eq!(document.attributes, Map::new());
    assert_eq!(document.source, None);
}

#[test]
fn the_key_is_the_id() {
    assert_eq!(
        decode(Some("k"), r#"{"title":"a"}"#).unwrap().id.as_str(),
        "k"
    );
    assert_eq!(
        decode(None, r#"{"id":"b","title":"a"}"#)
            .unwrap()
            .id
            .as_str(),
        "b"
    );
    assert_eq!(
        decode(Some("12"), r#"{"id":12,"title":"a"}"#)
            .unwrap()
            .id
            .as_str(),
        "12"
    );
    assert_eq!(class(Some("k"), r#"{"id":"b","title":"a"}"#), "id_mismatch");
    assert_eq!(
        class(Some("k"), r#"{"id":"k ","title":"a"}"#),
        "id_mismatch"
    );
    assert_eq!(class(None, r#"{"title":"a"}"#), "missing_id");
    assert_eq!(class(Some(""), r#"{"title":"a"}"#), "invalid_id");
    assert_eq!(class(None, r#"{"id":"  ","title":"a"}"#), "invalid_id");
    assert_eq!(class(None, r#"{"id":1.5,"title":"a"}"#), "wrong_type");
    assert_eq!(class(None, r#"{"id":["a"],"title":"a"}"#), "wrong_type");
    assert_eq!(
        class(Some(&"k".repeat(1025)), r#"{"title":"a"}"#),
        "invalid_id"
    );
    let mut wrong = record(None, Some(br#"{"title":"a"}"#), &[]);
    wrong.key = Some(vec![0xff, 0xfe]);
    assert_eq!(
        decoder(|_| {}).decode(&wrong).unwrap_err().class(),
        "invalid_utf8"
    );
}

#[test]
fn the_body_can_be_made_the_id() {
    let decoder = decoder(|settings| settings.id_from = IdFrom::Body);
    let id = |key: Option<&[u8]>, value: &str| {
        let mut record = record(None, Some(value.as_bytes()), &[]);
        record.key = key.map(<[u8]>::to_vec);
        document(&decoder, &record).map(|document| document.id.as_str().to_owned())
    };
    assert_eq!(id(Some(b"k"), r#"{"id":"b","title":"a"}"#).unwrap(), "b");
    assert_eq!(id(Some(b"\xff"), r#"{"id":"b","title":"a"}"#).unwrap(), "b");
    assert_eq!(id(Some(b"k"), r#"{"title":"a"}"#).unwrap(), "k");
    assert_eq!(
        id(None, r#"{"title":"a"}"#).unwrap_err().class(),
        "missing_id"
    );
}

#[test]
fn a_null_value_is_a_tombstone() {
    let decoder = decoder(|_| {});
    let id = DocumentId::new("k").unwrap();
    assert_eq!(
        decoder.decode(&record(Some("k"), None, &[])),
        Ok(Decoded::Tombstone(id))
    );
    assert_eq!(
        decoder.decode(&record(None, None, &[])),
        Err(DecodeError::TombstoneWithoutKey)
    );
    assert_eq!(
        class(Some("k"), "null"),
        "not_an_object",
        "JSON's null is a value"
    );
}

#[test]
fn what_is_no_json_object_is_refused() {
    for (value, expected) in [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("标题", "invalid_json"),
        (r#"{"title":"a"} trailing"#, "invalid_json"),
        (r#"{"title":NaN}"#, "invalid_json"),
        (r#"{"title":"a","x":1e999}"#, "invalid_json"),
        ("{\"title\":\"a\nb\"}", "invalid_json"),
        (r#"{"title":"a",}"#, "invalid_json"),
        ("[1,2]", "not_an_object"),
        ("\"text\"", "not_an_object"),
        ("true", "not_an_object"),
        ("12", "not_an_object"),
        ("\0\0\0\0\u{1}{\"title\":\"a\"}", "framed_value"),
        (r#"{"title":"\ud800"}"#, "lone_surrogate"),
        (r#"{"title":"\ud83d a"}"#, "lone_surrogate"),
        (r#"{"title":"\udc00"}"#, "lone_surrogate"),
        (r#"{"title":"\ud800\u0041"}"#, "lone_surrogate"),
        (r#"{"\ud800":"a","title":"a"}"#, "lone_surrogate"),
        (r#"{"title":"a","other":"\ud800"}"#, "lone_surrogate"),
    ] {
        assert_eq!(class(Some("k"), value), expected, "{value:?}");
    }
    let bytes = record(Some("k"), Some(b"{\"title\":\"\xc3\x28\"}"), &[]);
    assert_eq!(
        decoder(|_| {}).decode(&bytes),
        Err(DecodeError::InvalidUtf8 {
            part: Part::Value,
            at: 10
        })
    );
}

#[test]
fn a_byte_order_mark_and_white_space_are_tolerated() {
    assert_eq!(
        decode(Some("k"), "\u{feff}\r\n {\"title\":\"a\"}\n")
            .unwrap()
            .title,
        "a"
    );
}

#[test]
fn fields_of_a_wrong_type_are_named() {
    for field in ["title", "text", "source", "language"] {
        for wrong in ["1", "true", "[\"a\"]", "{\"a\":1}", "1.5"] {
            let value = format!(r#"{{"title":"a","text":"b","{field}":{wrong}}}"#);
            let error = decode(Some("k"), &value).unwrap_err();
            assert_eq!(error.class(), "wrong_type", "{value}");
            let message = error.to_string();
            assert!(
                message.contains(field) && message.contains(&format!("/{field}")),
                "{message}"
            );
        }
    }
    assert_eq!(
        class(Some("k"), r#"{"title":"a","published_at":true}"#),
        "wrong_type"
    );
    assert_eq!(
        class(Some("k"), r#"{"title":"a","published_at":"soon"}"#),
        "invalid_time"
    );
    assert_eq!(
        class(Some("k"), r#"{"title":"a","published_at":1e300}"#),
        "invalid_time"
    );
    assert_eq!(
        class(Some("k"), r#"{"title":"a","attributes":[1]}"#),
        "wrong_type"
    );
}

#[test]
fn a_document_needs_text() {
    for value in [
        "{}",
        r#"{"title":"","text":" \n\u3000\t"}"#,
        r#"{"title":null}"#,
    ] {
        assert_eq!(class(Some("k"), value), "empty_text", "{value}");
    }
}

#[test]
fn of_a_key_that_stands_twice_the_last_wins() {
    let document = decode(
        Some("k"),
        r#"{"title":1,"title":"b","x":1,"x":2,"text":"gone","text":null}"#,
    )
    .unwrap();
    assert_eq!(document.title, "b");
    assert_eq!(document.text, "");
    assert_eq!(document.attributes["x"], json!(2));
}

#[test]
fn sizes_and_depths_are_bounded() {
    let decoder = decoder(|settings| {
        settings.max_value_bytes = 1024;
        settings.max_depth = 3;
    });
    let class = |value: &str| {
        decoder
            .decode(&record(Some("k"), Some(value.as_bytes()), &[]))
            .map_err(|e| e.class())
    };
    assert_eq!(
        class(&format!(r#"{{"title":"{}"}}"#, "a".repeat(1024))),
        Err("oversized")
    );
    let edge = 1024 - r#"{"title":""}"#.len();
    assert!(class(&format!(r#"{{"title":"{}"}}"#, "a".repeat(edge))).is_ok());
    assert!(class(r#"{"title":"[[[[{{{{","x":[[1]],"y":{"z":[1]}}"#).is_ok());
    assert!(class(r#"{"title":"\"[[[[\\","x":[[1]]}"#).is_ok());
    assert_eq!(class(r#"{"title":"a","x":[[[1]]]}"#), Err("too_deep"));
    assert_eq!(class(r#"{"title":[[[["#), Err("too_deep"));
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    for deepest in [32, 120] {
        let decoder = decoder(|settings| settings.max_depth = deepest);
        for open in ["[", "{\"a\":"] {
            let value = format!("{{\"title\":\"a\",\"x\":{}", open.repeat(500_000));
            let error = decoder.decode(&record(Some("k"), Some(value.as_bytes()), &[]));
            assert_eq!(error.unwrap_err().class(), "too_deep");
        }
        let inner = deepest - 1;
        let value = format!(
            "{{\"title\":\"a\",\"x\":{}{}}}",
            "[".repeat(inner),
            "]".repeat(inner)
        );
        decoder
            .decode(&record(Some("k"), Some(value.as_bytes()), &[]))
            .unwrap();
    }
}

#[test]
fn pointers_reach_inside_and_leave_the_rest() {
    let decoder = decoder(|settings| {
        settings.fields.id = "/meta/ids/1".to_owned();
        settings.fields.title = "/a~1b/~0title".to_owned();
        settings.fields.text = "/body".to_owned();
        settings.fields.source = "/meta/publisher/name".to_owned();
        settings.fields.language = String::new();
        settings.fields.attributes = "/meta/tags".to_owned();
    });
    let value = r#"{"a/b":{"~title":"标题"},"body":"正文","meta":{"ids":[0,12],"publisher":{"name":"社","city":"京"},
        "tags":{"t":1}},"language":"zh"}"#;
    let document = document(&decoder, &record(None, Some(value.as_bytes()), &[])).unwrap();
    assert_eq!(document.id.as_str(), "12");
    assert_eq!(document.title, "标题");
    assert_eq!(document.text, "正文");
    assert_eq!(document.source.as_deref(), Some("社"));
    assert_eq!(document.language, None);
    let expected = json!({
        "meta": {"ids": [0, 12], "publisher": {"city": "京"}}, "language": "zh", "t": 1
    });
    assert_eq!(json!(document.attributes), expected);
}

#[test]
fn a_key_with_fields_inside_that_stands_twice_counts_once() {
    let decoder = decoder(|settings| settings.fields.title = "/m/title".to_owned());
    let value = br#"{"m":{"title":"a","rest":1},"m":{"title":"b"}}"#;
    let document = document(&decoder, &record(Some("k"), Some(value), &[])).unwrap();
    assert_eq!(document.title, "b");
    assert_eq!(document.attributes, Map::new());
}

#[test]
fn one_pointer_can_serve_two_fields() {
    let decoder = decoder(|settings| settings.fields.id = "/title".to_owned());
    let document = document(&decoder, &record(None, Some(br#"{"title":"a"}"#), &[])).unwrap();
    assert_eq!((document.id.as_str(), document.title.as_str()), ("a", "a"));
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    fn violations(change: impl FnOnce(&mut DecodeSettings)) -> Vec<String> {
        let mut settings = DecodeSettings::default();
        change(&mut settings);
        let violations = settings.violations();
        assert_eq!(Decoder::new(&settings).is_err(), !violations.is_empty());
        violations
            .into_iter()
            .map(|violation| violation.key)
            .collect()
    }
    assert_eq!(violations(|_| {}), Vec::<String>::new());
    for pointer in ["title", "/a~2", "/a~", "#/title"] {
        assert_eq!(
            violations(|s| s.fields.title = pointer.to_owned()),
            ["fields.title"]
        );
    }
    assert_eq!(violations(|s| s.max_depth = 121), ["max_depth"]);
    assert_eq!(violations(|s| s.max_value_bytes = 0), ["max_value_bytes"]);
    assert_eq!(violations(|s| s.max_text_chars = 0), ["max_text_chars"]);
    assert_eq!(
        violations(|s| s.time_zone = "Mars".to_owned()),
        ["time_zone"]
    );
    assert_eq!(
        violations(|s| s.text_separator = "。".repeat(33)),
        ["text_separator"]
    );
    let none = |s: &mut DecodeSettings| {
        s.fields.title.clear();
        s.fields.text.clear();
    };
    assert_eq!(violations(none), ["fields"]);
}

/// The demonstration stands on these files.
#[test]
fn the_samples_are_documents_balanced_over_their_topics() {
    let decoder = decoder(|_| {});
    let mut topics = std::collections::BTreeMap::<String, usize>::new();
    let mut seen = std::collections::BTreeSet::new();
    for line in include_str!("../../samples/news.jsonl").lines() {
        let document = document(&decoder, &record(None, Some(line.as_bytes()), &[])).unwrap();
        assert!(!document.title.is_empty() && !document.text.is_empty());
        assert!(document.published_at.is_some() && document.source.is_some());
        assert!(
            seen.insert(document.title.clone()),
            "{} stands twice",
            document.title
        );
        assert!(
            seen.insert(document.id.to_string()),
            "{} stands twice",
            document.id
        );
        let topic = document.attributes["topic"].as_str().unwrap();
        *topics.entry(topic.to_owned()).or_default() += 1;
    }
    assert_eq!(topics.len(), 17);
    assert!(topics.values().sum::<usize>() >= 320 && topics.values().all(|count| *count >= 18));
    for line in include_str!("../../samples/queries.jsonl").lines() {
        let query: Value = serde_json::from_str(line).unwrap();
        assert!(!query["query"].as_str().unwrap().is_empty());
        assert!(
            topics.contains_key(query["topic"].as_str().unwrap()),
            "{line}"
        );
    }
}

/// The embedded store's engine reads its payload with the same parser, and would not open again.
#[test]
fn a_name_that_the_parser_keeps_for_itself_is_rejected_wherever_it_stands() {
    let name = "$serde_json::private::RawValue";
    let deep = "[".repeat(120) + &"]".repeat(120);
    let objects = [
        json!({"title": "t", name: 5}),
        json!({"title": "t", "more": {name: "not json"}}),
        json!({"title": "t", "attributes": {"a": [{name: deep.clone()}]}}),
        json!({"data": {"title": "t", "more": {name: json!({name: deep}).to_string()}}}),
    ];
    for pointer in ["/title", "/data/title"] {
        let decoder = decoder(|settings| settings.fields.title = pointer.to_owned());
        for object in &objects {
            // Escaped, it is the same name.
            for text in [
                object.to_string(),
                object.to_string().replace("$serde", "\\u0024serde"),
            ] {
                let record = record(Some("k"), Some(text.as_bytes()), &[]);
                let error = decoder.decode(&record).unwrap_err();
                assert_eq!(error.class(), "invalid_json", "{text}");
                assert!(error.to_string().contains("is reserved"), "{error}");
            }
        }
    }
}
