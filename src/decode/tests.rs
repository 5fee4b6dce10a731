//! What decoding accepts, what it refuses and how it says so.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::bounds::Violation;
use crate::document::{Generation, RecordPosition, TopicPartition};
use crate::source::Header;

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
    }
}

fn decoder(change: impl FnOnce(&mut DecodeSettings)) -> Decoder {
    let mut settings = DecodeSettings::default();
    change(&mut settings);
    Decoder::new(&settings).unwrap()
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
        BTreeMap::from([("kept".to_owned(), json!(true))])
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
    assert_eq!(document.attributes, BTreeMap::new());
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
    assert_eq!(document.attributes, BTreeMap::new());
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
        let mut violations = Vec::<Violation>::new();
        settings.validate(&mut violations);
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

#[test]
fn the_documented_defaults_are_the_real_ones() {
    #[derive(serde::Deserialize)]
    struct Part {
        decode: DecodeSettings,
    }
    let part: Part = toml::from_str(include_str!("../../config/parts/decode.toml")).unwrap();
    assert_eq!(part.decode, DecodeSettings::default());
}

const BINARY: [(&str, &str); 5] = [
    ("ce_specversion", "1.0"),
    ("ce_id", "e-1"),
    ("ce_source", "//wire"),
    ("ce_type", "news.published"),
    ("content-type", "application/json; charset=utf-8"),
];

#[test]
fn a_binary_event_fills_what_its_data_lacks() {
    let decoder = decoder(|_| {});
    let mut headers = BINARY.to_vec();
    headers.extend([
        ("ce_time", "2026-01-31T08:00:00Z"),
        ("CE_Subject", "a/1"),
        ("ce_desk", "city"),
    ]);
    let bare = record(None, Some(br#"{"title":"a"}"#), &headers);
    let filled = document(&decoder, &bare).unwrap();
    assert_eq!(filled.id.as_str(), "e-1");
    assert_eq!(filled.source.as_deref(), Some("//wire"));
    assert_eq!(
        filled.published_at.unwrap().to_string(),
        "2026-01-31T08:00:00Z"
    );
    let expected = json!({
        "ce_id": "e-1", "ce_type": "news.published", "ce_subject": "a/1", "ce_desk": "city"
    });
    assert_eq!(json!(filled.attributes), expected);
    let value = br#"{"id":"d","title":"a","source":"s","published_at":"2026-01-01"}"#;
    let own = document(&decoder, &record(Some("d"), Some(value), &headers)).unwrap();
    assert_eq!(own.id.as_str(), "d");
    assert_eq!(own.source.as_deref(), Some("s"));
    assert_eq!(
        own.published_at.unwrap().to_string(),
        "2026-01-01T00:00:00Z"
    );
    let keyed = document(
        &decoder,
        &record(Some("k"), Some(br#"{"title":"a"}"#), &headers),
    )
    .unwrap();
    assert_eq!(keyed.id.as_str(), "k", "the key goes before the event's id");
}

#[test]
fn plain_text_events_are_bodies() {
    let headers = [&BINARY[..4], &[("content-type", "text/plain")]].concat();
    let document = document(
        &decoder(|_| {}),
        &record(None, Some("正文".as_bytes()), &headers),
    )
    .unwrap();
    assert_eq!(
        (document.title.as_str(), document.text.as_str()),
        ("", "正文")
    );
}

#[test]
fn binary_events_with_missing_or_wrong_attributes_are_refused() {
    let decoder = decoder(|_| {});
    let class = |headers: &[(&str, &str)]| {
        let record = record(Some("k"), Some(br#"{"title":"a"}"#), headers);
        decoder.decode(&record).unwrap_err()
    };
    for index in 1..4 {
        let mut headers = BINARY.to_vec();
        let (name, _) = headers.remove(index);
        let error = class(&headers);
        assert_eq!(error.class(), "invalid_cloudevent");
        assert!(
            error.to_string().contains(name.trim_start_matches("ce_")),
            "{error}"
        );
    }
    let with = |name, value| {
        let mut headers = BINARY.to_vec();
        headers.retain(|(known, _)| *known != name);
        headers.push((name, value));
        class(&headers).class()
    };
    assert_eq!(with("ce_specversion", "0.3"), "invalid_cloudevent");
    assert_eq!(with("ce_id", " "), "invalid_cloudevent");
    assert_eq!(with("ce_time", "yesterday"), "invalid_cloudevent");
    assert_eq!(
        with("content-type", "application/avro"),
        "unsupported_content_type"
    );
    assert_eq!(
        with("content-type", "application/json; charset=gb2312"),
        "unsupported_content_type"
    );
    assert_eq!(
        with("content-type", "application/cloudevents-batch+json"),
        "unsupported_content_type"
    );
    let mut broken = record(Some("k"), Some(br#"{"title":"a"}"#), &BINARY);
    broken.headers[1].value = Some(vec![0xff]);
    assert_eq!(decoder.decode(&broken).unwrap_err().class(), "invalid_utf8");
}

fn structured(value: &str) -> Result<Document, DecodeError> {
    let headers = [(
        "Content-Type",
        "application/cloudevents+json; charset=UTF-8",
    )];
    document(
        &decoder(|_| {}),
        &record(None, Some(value.as_bytes()), &headers),
    )
}

#[test]
fn a_structured_event_carries_its_data_inside() {
    let event = |data: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"e","source":"s","type":"t","subject":null,"n":4,{data},"time":"2026-01-31T08:00:00+08:00"}}"#
        )
    };
    let json_data = structured(&event(r#""data":{"title":"标题","x":1}"#)).unwrap();
    assert_eq!(
        (json_data.id.as_str(), json_data.title.as_str()),
        ("e", "标题")
    );
    assert_eq!(
        json_data.published_at.unwrap().to_string(),
        "2026-01-31T00:00:00Z"
    );
    let expected = json!({"ce_id": "e", "ce_type": "t", "ce_n": "4", "x": 1});
    assert_eq!(json!(json_data.attributes), expected);
    let text = structured(&event(r#""datacontenttype":"text/plain","data":"正\n文""#)).unwrap();
    assert_eq!(text.text, "正\n文");
    // {"title":"a"}
    let base64 = structured(&event(r#""data_base64":"eyJ0aXRsZSI6ImEifQ==""#)).unwrap();
    assert_eq!(base64.title, "a");
    for (data, expected) in [
        (r#""x":1"#, "invalid_cloudevent"),
        (r#""data":null"#, "invalid_cloudevent"),
        (
            r#""data":{"title":"a"},"data_base64":"eA==""#,
            "invalid_cloudevent",
        ),
        (r#""data_base64":"%%%""#, "invalid_cloudevent"),
        (r#""data_base64":7"#, "invalid_cloudevent"),
        (r#""data_base64":"AAAA""#, "framed_value"),
        (r#""data_base64":"/w==""#, "invalid_utf8"),
        (r#""data":[1]"#, "not_an_object"),
        (r#""data":"plain""#, "not_an_object"),
        (
            r#""datacontenttype":"text/plain","data":{"title":"a"}"#,
            "invalid_cloudevent",
        ),
        (
            r#""datacontenttype":"image/png","data_base64":"eA==""#,
            "unsupported_content_type",
        ),
        (
            r#""data":{"title":"a"},"extension":[1]"#,
            "invalid_cloudevent",
        ),
        (r#""data":{"title":"\ud800"}"#, "lone_surrogate"),
    ] {
        assert_eq!(
            structured(&event(data)).unwrap_err().class(),
            expected,
            "{data}"
        );
    }
    assert_eq!(structured("[1]").unwrap_err().class(), "not_an_object");
    assert_eq!(structured("{").unwrap_err().class(), "invalid_json");
    assert_eq!(structured("{}").unwrap_err().class(), "invalid_cloudevent");
}

#[test]
fn the_format_decides_whether_headers_are_looked_at() {
    let json_only = decoder(|settings| settings.format = Format::Json);
    let with_headers = record(
        Some("k"),
        Some(br#"{"title":"a"}"#),
        &[("ce_specversion", "9")],
    );
    assert!(json_only.decode(&with_headers).is_ok());
    let events_only = decoder(|settings| settings.format = Format::CloudEvents);
    let plain = record(Some("k"), Some(br#"{"title":"a"}"#), &[]);
    assert_eq!(events_only.decode(&plain), Err(DecodeError::NotCloudEvent));
}

/// The demonstration stands on these files.
#[test]
fn the_samples_are_documents_balanced_over_their_topics() {
    let decoder = decoder(|_| {});
    let mut topics = BTreeMap::<String, usize>::new();
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

fn small_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        "id",
        "title",
        "text",
        "published_at",
        "source",
        "language",
        "attributes",
        "meta",
        "\\PC{0,4}"
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..8)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// The reference: the same answer by way of a whole tree and serde_json's own pointers.
fn reference(value: &Value, fields: &FieldPointers) -> Option<(String, String)> {
    let text = |pointer: &str| match value.pointer(pointer) {
        None | Some(Value::Null) => Some(String::new()),
        Some(Value::String(text)) => Some(text.clone()),
        Some(_) => None,
    };
    Some((text(&fields.title)?, text(&fields.text)?))
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..8)),
        value in prop::collection::vec(any::<u8>(), 0..200),
        event in any::<bool>(),
    ) {
        let headers = if event { &BINARY[..] } else { &[] };
        let mut record = record(None, Some(&value), headers);
        record.key = key;
        if let Err(error) = decoder(|_| {}).decode(&record) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_json_gets_an_answer_and_the_fast_path_agrees_with_a_tree(
        value in small_json(), nested in any::<bool>(), structured in any::<bool>(),
    ) {
        let mut settings = DecodeSettings::default();
        if nested {
            settings.fields.title = "/meta/title".to_owned();
            settings.fields.text = "/text/0".to_owned();
        }
        let decoder = Decoder::new(&settings).unwrap();
        let headers = [("content-type", "application/cloudevents+json")];
        let headers = if structured { &headers[..] } else { &[] };
        let bytes = serde_json::to_vec(&value).unwrap();
        let decoded = decoder.decode(&record(Some("k"), Some(&bytes), headers));
        if let Ok(Decoded::Document(document)) = decoded {
            prop_assert!(!structured, "an event needs its version");
            let found = reference(&value, &settings.fields);
            prop_assert_eq!(Some((document.title, document.text)), found);
        }
    }

    #[test]
    fn mutated_records_get_an_answer(
        at in 0_usize..200, bytes in prop::collection::vec(any::<u8>(), 0..6), removed in 0_usize..20,
    ) {
        let valid = r#"{"id":"k","title":"标\u9898🙂","text":"正文","published_at":1769846400123,"source":"s","language":"zh","attributes":{"a":[1,{"b":null}]},"more":-1.5e3}"#;
        let mut mutated = valid.as_bytes().to_vec();
        let at = at.min(mutated.len());
        let end = (at + removed).min(mutated.len());
        mutated.splice(at..end, bytes);
        let decoded = decoder(|_| {}).decode(&record(Some("k"), Some(&mutated), &[]));
        if let Ok(Decoded::Document(document)) = decoded {
            prop_assert_eq!(document.id.as_str(), "k");
            prop_assert!(!document.title.trim().is_empty() || !document.text.trim().is_empty());
        }
    }
}

/// Run by hand: `cargo test --release --lib decode::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let decoder = decoder(|_| {});
    let title = r#"{"id":"n-1","title":"城市更新让老街区焕发新活力，居民家门口有了新公园","published_at":"2026-01-31T08:00:00+08:00","source":"晚报","language":"zh"}"#;
    let long = format!(
        r#"{{"id":"n-1","title":"标题","text":"{}","views":1}}"#,
        "正文内容。".repeat(200)
    );
    for (name, value) in [("titles", title), ("1,000 characters", long.as_str())] {
        let record = record(Some("n-1"), Some(value.as_bytes()), &[]);
        let rounds = 200_000;
        let start = std::time::Instant::now();
        for _ in 0..rounds {
            std::hint::black_box(decoder.decode(std::hint::black_box(&record)).unwrap());
        }
        let rate = f64::from(rounds) / start.elapsed().as_secs_f64();
        println!(
            "{name}: {} bytes, {rate:.0} documents a second on one core",
            value.len()
        );
    }
}
