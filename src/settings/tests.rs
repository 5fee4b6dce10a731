//! What a newcomer sees after a slip in the configuration.

use std::io::Write;

use super::*;

fn with<T>(toml: &str, variables: &[(&str, &str)], read: impl FnOnce(&Origins) -> T) -> T {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    read(&Origins {
        file: Some(file.path().to_owned()),
        variables: variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Origins::default()
    })
}

fn load(toml: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsErrors> {
    with(toml, variables, Settings::load)
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
fn a_key_in_another_script_is_like_none_of_ours() {
    let text = message("[\"日志啊\"]", &[]);
    assert!(text.contains("日志啊"), "{text}");
    assert!(!text.contains("did you mean"), "{text}");
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
        ..Origins::default()
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

#[test]
fn counts_of_tokens_are_no_secrets() {
    let text = message("[tagging]\nmax_tokens = 7\n[batch]\ntoken_budget = -1", &[]);
    assert!(text.contains("-1"), "{text}");
    let text = message("[tagging]\nmax_tokens = 7", &[]);
    assert!(text.contains("\"7\""), "{text}");
}

#[test]
fn a_password_in_an_address_is_not_shown() {
    let url = "http://me:hunter2@host:6334";
    let toml = format!("[store]\nkind = \"qdrant\"\nurl = \"{url}\"");
    for text in [
        message(&toml, &[]),
        message(&format!("[store]\nbatch_points = \"{url}\""), &[]),
    ] {
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("@host:6334"), "{text}");
    }
}

#[test]
fn a_key_with_a_line_break_is_refused_unseen() {
    let variables = [
        ("TCBERT__STORE__KIND", "qdrant"),
        ("TCBERT__STORE__API_KEY", "hunter\n2"),
    ];
    let text = message("", &variables);
    assert!(!text.contains("hunter"), "{text}");
    assert!(text.contains("TCBERT__STORE__API_KEY"), "{text}");
}

#[test]
fn keys_below_tables_have_their_own_origin() {
    for toml in [
        "[decode.fields]\ntitle = \"title\"",
        "[kafka.properties]\n\"sasl.passwrod\" = \"hunter2\"",
    ] {
        let text = message(toml, &[]);
        assert!(text.contains(".toml"), "{text}");
        assert!(!text.contains("built-in"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn an_unknown_key_below_a_closed_table_names_the_nearest() {
    let text = message("[decode.fields]\ntitel = \"/t\"", &[]);
    assert!(
        text.contains("`decode.fields.titel`") && text.contains("`decode.fields.title`"),
        "{text}"
    );
    let text = message("", &[("TCBERT__DECODE__FIELDS__TITEL", "/t")]);
    assert!(text.contains("TCBERT__DECODE__FIELDS__TITEL"), "{text}");
}

#[test]
fn a_value_of_another_kind_is_never_made_to_fit() {
    for (toml, key) in [
        (
            "[kafka]\nsession_timeout_ms = 10000.7",
            "kafka.session_timeout_ms",
        ),
        (
            "[kafka]\nsession_timeout_ms = true",
            "kafka.session_timeout_ms",
        ),
        (
            "[kafka]\nsession_timeout_ms = 1e99",
            "kafka.session_timeout_ms",
        ),
        (
            "[kafka]\nsession_timeout_ms = \"10000\"",
            "kafka.session_timeout_ms",
        ),
        ("[kafka]\ntopic = true", "kafka.topic"),
        ("[kafka]\ntopic = 5", "kafka.topic"),
        ("[kafka]\ntopic = [\"a\"]", "kafka.topic"),
        ("[decode.fields]\ntitle = 5", "decode.fields.title"),
        ("[tagging]\ncalibration = 1", "tagging.calibration"),
        ("store = 5", "store"),
        ("[kafka]\nproperties = 5", "kafka.properties"),
    ] {
        let text = message(toml, &[]);
        assert!(text.contains(&format!("`{key}` is")), "{text}");
        assert!(text.contains("expected "), "{text}");
        assert!(text.contains(".toml"), "{text}");
    }
    load("[tagging]\nthreshold = 0\ncalibration = true", &[]).unwrap();
}

#[test]
fn the_environment_is_parsed() {
    let variables = [
        ("TCBERT__KAFKA__SESSION_TIMEOUT_MS", "20000"),
        ("TCBERT__TAGGING__THRESHOLD", "0.5"),
        ("TCBERT__STORE__KEEP_TEXT", "true"),
    ];
    let settings = load("", &variables).unwrap();
    assert_eq!(settings.kafka.session_timeout_ms, 20_000);
    assert!(settings.store.keep_text);
    for value in ["true", "10000.7", "1e4"] {
        let text = message("", &[("TCBERT__KAFKA__SESSION_TIMEOUT_MS", value)]);
        assert!(text.contains("whole number"), "{text}");
    }
    let text = message("", &[("TCBERT__STORE", "5")]);
    assert!(text.contains("section"), "{text}");
}

#[test]
fn a_word_that_is_none_of_those_allowed_is_answered_with_them() {
    for (section, key, allowed) in [
        ("store", "kind", "\"embedded\" or \"qdrant\""),
        ("log", "format", "\"text\" or \"json\""),
        ("decode", "format", "\"cloudevents\""),
        ("decode", "id_from", "\"key\" or \"body\""),
        ("decode", "text", "\"title_and_body\""),
        ("model", "fallback", "\"none\""),
        ("kafka", "on_missing_offset", "\"earliest\""),
    ] {
        let text = message(&format!("[{section}]\n{key} = \"qdrnt\""), &[]);
        assert!(text.contains(allowed), "{text}");
        assert!(text.contains(&format!("`{section}.{key}`")), "{text}");
    }
}

#[test]
fn the_file_is_named_as_it_was_given() {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(b"[kafka]\ntopics = 1").unwrap();
    let error = Settings::load(&Origins {
        file: Some(file.path().to_owned()),
        ..Origins::default()
    });
    let text = error.unwrap_err().to_string();
    let name = file.path().display().to_string();
    assert!(text.contains(&format!("(from {name})")), "{text}");
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let text = message(
        "[kafka]\ntopics = \"a\"\naccept_gap = 5\n[stor]\nkind = \"x\"",
        &[("TCBERT__BATCH__LINGER_MS", "soon")],
    );
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].contains("kafka.topics") && lines[1].contains("stor.kind"));
    let text = message(
        "[batch]\nmax_rows = 0\n[tagging]\ntop_k = -1\n[store]\nkind = \"x\"",
        &[],
    );
    for key in ["top_k", "max_rows", "store.kind"] {
        assert!(text.contains(key), "{text}");
    }
    let text = message(
        "[batch]\nmax_rows = 0\n[pipeline]\nprepare_threads = 65",
        &[],
    );
    assert!(
        text.contains("from 1 to 65536") && text.contains("from 1 to 64"),
        "{text}"
    );
}

#[test]
fn a_variable_that_lacks_an_underscore_is_told_its_name() {
    let text = message("", &[("TCBERT__KAFKA_BROKERS", "x:1")]);
    assert!(
        text.contains("did you mean `kafka.brokers` (TCBERT__KAFKA__BROKERS)?"),
        "{text}"
    );
}

#[test]
fn an_environment_without_a_file_is_told_which_there_are() {
    let text = message("", &[("TCBERT_ENV", "producton")]);
    assert!(
        text.contains("TCBERT_ENV") && text.contains("config/producton.toml"),
        "{text}"
    );
    assert!(text.contains("there are development, production"), "{text}");
    let settings = load("", &[("TCBERT_ENV", "production")]).unwrap();
    assert!(!settings.store.apply_migrations);
}

#[test]
fn what_is_in_effect_is_shown_with_its_origin_and_without_secrets() {
    let toml = "[kafka]\ntopic = \"news\"\n[kafka.properties]\n\"sasl.password\" = \"hunter2\"\n[decode.fields]\nid = \"/nr\"";
    let found = with(toml, &[("TCBERT__STORE__API_KEY", "hunter2")], effective).unwrap();
    let of = |key: &str| {
        found
            .iter()
            .find(|setting| setting.key == key)
            .unwrap()
            .clone()
    };
    assert_eq!(of("kafka.topic").value.as_deref(), Some("news"));
    assert!(of("kafka.topic").origin.contains(".toml") && !of("kafka.topic").is_default());
    assert!(of("kafka.brokers").is_default());
    assert_eq!(of("decode.fields.id").value.as_deref(), Some("/nr"));
    assert_eq!(of("decode.fields.title").value.as_deref(), Some("/title"));
    assert_eq!(of("tagging.threshold").value, None);
    for secret in ["store.api_key", "kafka.properties.sasl.password"] {
        assert_eq!(of(secret).value.as_deref(), Some("(secret)"), "{secret}");
    }
    assert!(
        of("store.api_key")
            .origin
            .contains("TCBERT__STORE__API_KEY")
    );
    assert!(!format!("{found:?}").contains("hunter2"));
}
