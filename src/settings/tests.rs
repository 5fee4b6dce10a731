//! What a newcomer sees after a slip in the configuration.

use std::io::Write;

use super::*;

fn load(toml: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    Settings::load(&Origins {
        file: Some(file.path().to_owned()),
        variables: variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    })
}

fn message(toml: &str, variables: &[(&str, &str)]) -> String {
    load(toml, variables).unwrap_err().to_string()
}

#[test]
fn defaults_are_valid() {
    load("", &[]).unwrap();
}

#[test]
fn the_environment_wins_over_the_file() {
    let settings = load(
        "[kafka]\ntopic = \"a\"\ngroup_id = \"from-file\"",
        &[("TCBERT__KAFKA__TOPIC", "b")],
    )
    .unwrap();
    assert_eq!(settings.kafka.topic, "b");
    assert_eq!(settings.kafka.group_id, "from-file");
}

#[test]
fn a_number_like_text_stays_as_it_was_written() {
    let settings = load("", &[("TCBERT__KAFKA__GROUP_ID", "0012")]).unwrap();
    assert_eq!(settings.kafka.group_id, "0012");
}

#[test]
fn a_misspelt_key_names_the_nearest_and_the_origin() {
    let text = message("[kafka]\ntopics = \"a\"", &[]);
    assert!(
        text.contains("`kafka.topics`") && text.contains("`kafka.topic`"),
        "{text}"
    );
    assert!(text.contains(".toml"), "{text}");
    let text = message("", &[("TCBERT__KAFKA__BROKER", "x:1")]);
    assert!(
        text.contains("TCBERT__KAFKA__BROKER") && text.contains("kafka.brokers"),
        "{text}"
    );
}

#[test]
fn a_section_that_does_not_exist_is_refused() {
    let text = message("[kafkaa]\ntopic = \"a\"", &[]);
    assert!(text.contains("kafkaa"), "{text}");
}

#[test]
fn a_wrong_type_names_key_value_and_origin() {
    let text = message("", &[("TCBERT__BATCH__LINGER_MS", "soon")]);
    assert!(
        text.contains("batch.linger_ms") && text.contains("soon"),
        "{text}"
    );
    assert!(text.contains("TCBERT__BATCH__LINGER_MS"), "{text}");
    let text = message("[batch]\nlinger_ms = -4", &[]);
    assert!(
        text.contains("batch.linger_ms") && text.contains("-4"),
        "{text}"
    );
}

#[test]
fn a_value_out_of_bounds_names_what_is_allowed() {
    let text = message("", &[("TCBERT__KAFKA__BROKERS", "localhost:99999")]);
    assert!(
        text.contains("kafka.brokers") && text.contains("99999"),
        "{text}"
    );
    assert!(text.contains("65535"), "{text}");
}

#[test]
fn properties_take_dots_from_underscores_and_from_tables() {
    let settings = load(
        "[kafka.properties]\nsecurity.protocol = \"SASL_SSL\"\n\"sasl.mechanism\" = \"PLAIN\"",
        &[("TCBERT__KAFKA__PROPERTIES__SASL_USERNAME", "worker")],
    )
    .unwrap();
    let properties = &settings.kafka.properties;
    assert_eq!(properties.get("security.protocol"), Some("SASL_SSL"));
    assert_eq!(properties.get("sasl.mechanism"), Some("PLAIN"));
    assert_eq!(properties.get("sasl.username"), Some("worker"));
}

#[test]
fn secrets_stay_out_of_debug_output() {
    let settings = load(
        "",
        &[
            ("TCBERT__STORE__API_KEY", "hunter2-store"),
            ("TCBERT__KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2-kafka"),
        ],
    )
    .unwrap();
    let text = format!("{settings:?}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Settings::load(&Origins {
        file: Some("no/such.toml".into()),
        variables: Vec::new(),
    })
    .unwrap_err();
    assert!(error.to_string().contains("no/such.toml"));
}

#[test]
fn broken_toml_says_where() {
    let text = message("[kafka\ntopic = 1", &[]);
    assert!(text.contains(".toml") && text.contains("line"), "{text}");
}

#[test]
fn a_broken_line_does_not_show_the_secret_on_it() {
    let text = message("[store]\napi_key = \"hunter2", &[]);
    assert!(
        text.contains("line 2") && !text.contains("hunter2"),
        "{text}"
    );
    let text = message("[store]\napi_key = [\"hunter2\"]", &[]);
    assert!(
        text.contains("store.api_key") && !text.contains("hunter2"),
        "{text}"
    );
}
