//! CloudEvents in both modes, whole and broken.

use serde_json::json;

use super::*;

pub(super) const BINARY: [(&str, &str); 5] = [
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
