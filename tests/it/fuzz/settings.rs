//! Configuration: whatever a file or the environment holds, it loads or one message says why not.

use std::fs;

use tcbert_worker::settings::{Origins, Settings, SettingsError};

use super::fuzz;

const WORDS: [&str; 26] = [
    "[kafka]\n",
    "[decode]\n",
    "[store]\n",
    "[batch]\n",
    "[decode.fields]\n",
    "[kafka.properties]\n",
    "[a.b.c]\n",
    "topic = \"x\"\n",
    "linger_ms = -1\n",
    "linger_ms = 1e9\n",
    "brokers = \"h:99999\"\n",
    "api_key = \"hunter2\"\n",
    "= ",
    "\"",
    "'''",
    "[[",
    "]]",
    "{ a = 1 }",
    "true",
    "9223372036854775807",
    "nan",
    "inf",
    "2026-01-31",
    "\n#",
    "\\u0000",
    "max_depth = 10\n",
];

#[test]
fn configuration_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fuzzed.toml");
    fuzz("settings", &WORDS, |input| {
        fs::write(&file, input).unwrap();
        // The first line is an environment variable's value as well.
        let line = input
            .split(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        let value = String::from_utf8_lossy(line).into_owned();
        let loaded = Settings::load(&Origins {
            file: Some(file.clone()),
            variables: vec![
                ("TCBERT__BATCH__LINGER_MS".to_owned(), value),
                ("TCBERT__STORE__API_KEY".to_owned(), "hunter3".to_owned()),
            ],
            ..Origins::default()
        });
        match loaded {
            Ok(settings) => {
                let shown = format!("{settings:?}");
                assert!(!shown.contains("hunter3"), "a secret in debug output");
                "loaded".to_owned()
            }
            Err(error) => {
                let message = error.to_string();
                assert!(!message.trim().is_empty());
                assert!(!message.contains("hunter3"), "a secret in {message}");
                let kinds = error.0.into_iter().map(|error| match error {
                    SettingsError::UnknownKey { key, .. } if key.len() < 40 => {
                        format!("unknown {key}")
                    }
                    SettingsError::WrongType { key, .. } => format!("type {key}"),
                    SettingsError::OutOfBounds(value) => format!("bounds {}", value.key),
                    other => format!("{:?}", std::mem::discriminant(&other)),
                });
                kinds.collect::<Vec<_>>().join(", ")
            }
        }
    });
}
