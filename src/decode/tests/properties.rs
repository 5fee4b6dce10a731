//! Whatever a record holds, decoding answers; and how fast.

use proptest::prelude::*;

use super::cloud_events::BINARY;
use super::*;

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

    /// However many values are kept, all are checked, and a document is whole or has none of its attributes.
    #[test]
    fn attributes_that_are_left_in_the_record_are_checked_and_found_there(
        value in small_json(), most in 0_usize..12, at in 0_usize..400, byte in any::<u8>(), changes in any::<bool>(),
    ) {
        let mut bytes = serde_json::to_vec(&json!({"title": "a", "attributes": {"b": value}, "more": value})).unwrap();
        if let (true, Some(changed)) = (changes, bytes.get_mut(at)) {
            *changed = byte;
        }
        let decoder = decoder(|_| {});
        let record = record(Some("k"), Some(&bytes), &[]);
        let whole = decoder.decode_whole(&record);
        match (decoder.read(&record, most), whole) {
            (Ok(Decoded::Document(mut some)), Ok(Decoded::Document(whole))) => {
                prop_assert_eq!(whole.left_in_record, 0);
                if some.left_in_record > 0 {
                    prop_assert!(some.left_in_record > most && some.attributes.is_empty());
                    some.left_in_record = 0;
                    some.attributes = whole.attributes.clone();
                }
                prop_assert_eq!(&some, &whole);
                if !changes {
                    let read: Value = serde_json::from_slice(&bytes).unwrap();
                    let expected = json!({"b": read["attributes"]["b"], "more": read["more"]});
                    prop_assert_eq!(serde_json::to_string(&whole.attributes).unwrap(), expected.to_string());
                }
            }
            (some, whole) => prop_assert_eq!(some, whole),
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

/// One long value costs as much twice as many short ones.
#[test]
fn a_large_record_is_held_once() {
    let long = "x".repeat(super::super::LARGE_VALUE);
    let bytes = serde_json::to_vec(&json!({"title": "a", "long": long})).unwrap();
    let decoder = decoder(|_| {});
    let record = record(Some("k"), Some(&bytes), &[]);
    let (Ok(Decoded::Document(held)), Ok(Decoded::Document(whole))) =
        (decoder.decode(&record), decoder.decode_whole(&record))
    else {
        panic!("it is valid");
    };
    assert!(held.left_in_record > 0 && held.attributes.is_empty());
    assert_eq!(whole.attributes["long"], json!(long));
}
