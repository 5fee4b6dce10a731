//! A Qdrant server behind TLS and an API key, reached by the program as a user sets it up.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::authority::Authority;
use crate::processes;
use crate::qdrant_server::{Options, TestServer};

const KEY: &str = "hunter5-of-the-store";
const WRONG_KEY: &str = "hunter6-of-nobody";
const TOLD_WITHIN: Duration = Duration::from_secs(30);

fn migrate(url: &str, authority: &Path, key: (&str, &str)) -> Output {
    processes::run(
        Command::new(env!("CARGO_BIN_EXE_tcbert-worker"))
            .args(["migrate", "apply"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("SSL_CERT_FILE", authority)
            .env("TCBERT__LOG__LEVEL", "trace")
            .env("TCBERT__STORE__KIND", "qdrant")
            .env("TCBERT__STORE__URL", url)
            .env(format!("TCBERT__STORE__{}", key.0), key.1),
    )
}

#[test]
fn the_right_key_works_and_everything_else_is_one_clear_line_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let (ours, strangers) = (Authority::new(), Authority::new());
    let trusted = write("authority.pem", &ours.certificate);
    let stranger = write("stranger.pem", &strangers.certificate);
    let file = write("key", &format!("{KEY}\n")).display().to_string();
    let server = TestServer::start(Options {
        api_key: Some(KEY.to_owned()),
        identity: Some((ours.server_certificate.clone(), ours.server_key.clone())),
        ..Options::default()
    });
    let url = server.url();
    let plain = url.replace("https://", "http://");
    for (what, url, authority, key, says) in [
        (
            "a wrong key",
            &url,
            &trusted,
            ("API_KEY", WRONG_KEY),
            "store.api_key",
        ),
        (
            "a wrong authority",
            &url,
            &stranger,
            ("API_KEY", KEY),
            "store.url",
        ),
        (
            "no encryption",
            &plain,
            &trusted,
            ("API_KEY", KEY),
            "store.url",
        ),
        ("the key", &url, &trusted, ("API_KEY", KEY), ""),
        (
            "a file with the key",
            &url,
            &trusted,
            ("API_KEY_FILE", &file),
            "",
        ),
    ] {
        let started = Instant::now();
        let output = migrate(url, authority, key);
        assert!(started.elapsed() < TOLD_WITHIN, "{what}");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        for secret in [KEY, WRONG_KEY, "PRIVATE KEY"] {
            assert!(!said.contains(secret), "{what}: {secret} is told");
        }
        let errors: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        if says.is_empty() {
            assert!(output.status.success(), "{what}: {errors:?}");
            assert!(
                said.contains("TRACE") || said.contains("DEBUG"),
                "{what}: all is logged"
            );
        } else {
            assert!(
                matches!(output.status.code(), Some(1 | 2)),
                "{what}: {errors:?}"
            );
            assert!(
                errors.len() == 1 && errors[0].contains(says),
                "{what}: {errors:?}"
            );
            println!("{what}: {}", errors[0]);
        }
    }
}
