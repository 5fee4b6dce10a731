//! Which values no message may show, and how the others are shown. Pure.

use config::{Value, ValueKind};
use strsim::levenshtein;

use crate::keys::without_user;

/// What stands for a value that is kept back.
const HIDDEN: &str = "(secret)";
/// Slips in a word that are still taken for it: a misspelt `passwrod` holds a password too.
const SLIPS: usize = 2;

/// The value as the user would recognise it; secrets are never shown.
pub(super) fn shown(key: &str, value: &Value) -> String {
    match &value.kind {
        _ if is_secret(key) => HIDDEN.to_owned(),
        // What is in it may be secret, whatever the table is called.
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "an array".to_owned(),
        _ => without_user(&value.to_string()),
    }
}

/// Whether a key's value must stay out of messages.
pub(super) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    // The name of a file is no secret.
    if key.ends_with("_file") || key.ends_with(".file") {
        return false;
    }
    let parts: Vec<&str> = key.split(['.', '_']).collect();
    let is_word = |part: &&str| {
        levenshtein(part, "password") <= SLIPS
            || matches!(*part, "secret" | "jaas" | "passphrase")
            || part.starts_with("oauth")
    };
    parts.iter().any(is_word)
        // `token_budget` counts tokens, `api_token` is one.
        || matches!(parts.last(), Some(&("token" | "properties")))
        || key.contains("api_key")
        || key.ends_with("key.pem")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_from_what_sounds_like_them() {
        for key in [
            "store.api_key",
            "api_key",
            "kafka.properties",
            "properties.sasl.password",
            "properties.sasl.passwrod",
            "properties.ssl.key.pem",
            "properties.ssl.keystore.password",
            "properties.sasl.oauthbearer.client.secret",
            "properties.sasl.jaas.config",
            "api_token",
        ] {
            assert!(is_secret(key), "{key}");
        }
        for key in [
            "tagging.max_tokens",
            "batch.token_budget",
            "store.api_key_file",
            "properties.security.protocol",
            "properties.sasl.password.file",
            "properties.sasl.username",
        ] {
            assert!(!is_secret(key), "{key}");
        }
    }
}
