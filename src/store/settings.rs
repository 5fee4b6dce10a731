//! The `[store]` section: which store, where, how much at once. Knows no engine.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use tonic::codegen::http::Uri;

use crate::bounds::{Violation, check_range, without_user};
use crate::store::StoreError;

/// Most bytes of one request; a server takes 32 MB, writes get slow long before.
pub const MAX_REQUEST_BYTES: usize = 5_000_000;

/// Most points of a write; a multiple of what any store gains by.
const MAX_BATCH_POINTS: usize = 4096;

/// Which store points go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Qdrant's engine inside this process, in a folder.
    Embedded,
    /// A Qdrant server over gRPC.
    Qdrant,
}

impl StoreKind {
    /// How long an incomplete write waits for company where nothing is configured. A write of the embedded
    /// store takes 10 ms of processor time for its flush, which no model gets.
    pub(crate) fn write_linger(self) -> Duration {
        Duration::from_millis(match self {
            Self::Embedded => 200,
            Self::Qdrant => 20,
        })
    }

    /// Most points of a write where nothing is configured. The flush of the embedded store costs the same for
    /// one point and for thousands; a server's requests go out side by side.
    fn batch_points(self) -> usize {
        match self {
            Self::Embedded => 2048,
            Self::Qdrant => 128,
        }
    }
}

/// The `[store]` section.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// Embedded or a server.
    pub kind: StoreKind,
    /// gRPC address of the server.
    pub url: String,
    /// Key of the server; rather from the environment or `api_key_file`.
    pub api_key: ApiKey,
    /// File that holds the key; `None` where there is none.
    pub api_key_file: Option<PathBuf>,
    /// Folder of the embedded store.
    pub path: PathBuf,
    /// Collection (or alias) that is written and searched.
    pub collection: String,
    /// Alias that migrations let stand for the collection; empty for none.
    pub alias: String,
    /// Whether `run` and `backfill` apply pending migrations when they start.
    pub apply_migrations: bool,
    /// Most points of one request; `None` for what suits the store.
    pub batch_points: Option<usize>,
    /// Most bytes of one request.
    pub max_batch_bytes: usize,
    /// Most requests in flight.
    pub concurrency: usize,
    /// How long a request may take.
    pub timeout_ms: u64,
    /// How long connecting may take.
    pub connect_timeout_ms: u64,
    /// Whether the body is kept in the payload.
    pub keep_text: bool,
    /// How long the marker of a deletion keeps late older writes out.
    pub tombstone_retention_hours: u64,
    /// Free disk below which the embedded store takes no writes.
    pub min_free_mb: u64,
    /// Disk that the embedded store's log may take before it is trimmed.
    pub max_log_mb: u64,
    /// Points of the embedded store from which it builds a search graph; 0 for never.
    pub graph_from_points: usize,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            kind: StoreKind::Embedded,
            url: "http://localhost:6334".into(),
            api_key: ApiKey::default(),
            api_key_file: None,
            path: PathBuf::from("data/store"),
            collection: "documents".into(),
            alias: String::new(),
            apply_migrations: true,
            batch_points: None,
            max_batch_bytes: 4_000_000,
            concurrency: 4,
            timeout_ms: 20_000,
            connect_timeout_ms: 5_000,
            keep_text: false,
            tombstone_retention_hours: 168,
            min_free_mb: 256,
            max_log_mb: 1024,
            graph_from_points: 0,
        }
    }
}

impl StoreSettings {
    /// Most points of one request.
    pub fn batch_points(&self) -> usize {
        self.batch_points
            .unwrap_or_else(|| self.kind.batch_points())
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// How long connecting may take.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// How long markers of deletions are kept.
    pub fn tombstone_retention(&self) -> Duration {
        Duration::from_secs(self.tombstone_retention_hours * 60 * 60)
    }

    /// Notes every value that is not allowed.
    pub fn validate(&self, violations: &mut Vec<Violation>) {
        check_range(
            violations,
            "batch_points",
            self.batch_points(),
            1,
            MAX_BATCH_POINTS,
        );
        check_range(
            violations,
            "max_batch_bytes",
            self.max_batch_bytes,
            10_000,
            MAX_REQUEST_BYTES,
        );
        check_range(violations, "concurrency", self.concurrency, 1, 64);
        check_range(violations, "timeout_ms", self.timeout_ms, 100, 600_000);
        check_range(
            violations,
            "connect_timeout_ms",
            self.connect_timeout_ms,
            100,
            25_000,
        );
        check_range(
            violations,
            "tombstone_retention_hours",
            self.tombstone_retention_hours,
            1,
            24 * 3660,
        );
        check_range(violations, "max_log_mb", self.max_log_mb, 64, 1_000_000);
        check_name(violations, "collection", &self.collection);
        if !self.alias.is_empty() {
            check_name(violations, "alias", &self.alias);
            if self.alias == self.collection {
                violations.push(Violation::new(
                    "alias",
                    &self.alias,
                    "a name other than store.collection, or empty for no alias",
                ));
            }
        }
        match self.kind {
            StoreKind::Embedded if self.path.as_os_str().is_empty() => violations.push(
                Violation::new("path", "", "the folder of the embedded store"),
            ),
            StoreKind::Embedded => {}
            StoreKind::Qdrant => self.validate_server(violations),
        }
    }

    fn validate_server(&self, violations: &mut Vec<Violation>) {
        let address = match Address::parse(&self.url) {
            Ok(address) => address,
            Err(allowed) => {
                violations.push(Violation::new("url", without_user(&self.url), allowed));
                return;
            }
        };
        if self.api_key.is_set() && self.api_key_file.is_some() {
            violations.push(Violation::new(
                "api_key_file",
                "set beside api_key",
                "one of api_key and api_key_file",
            ));
        }
        if self.api_key.is_set() && !is_header_value(&self.api_key.0) {
            violations.push(Violation::new("api_key", "(secret)", ALLOWED_KEY));
        }
        let has_key = self.api_key.is_set() || self.api_key_file.is_some();
        if has_key && !address.tls && !address.loopback {
            violations.push(Violation::new(
                "url",
                without_user(&self.url),
                "an https address, because the API key would cross the network readable for all",
            ));
        }
    }

    /// The key, from `api_key` or the file of `api_key_file`.
    ///
    /// # Errors
    /// Where the file cannot be read, or the key in it is none.
    pub fn resolve_api_key(&self) -> Result<Option<String>, ApiKeyError> {
        if self.api_key.is_set() {
            return Ok(Some(self.api_key.0.clone()));
        }
        let Some(path) = &self.api_key_file else {
            return Ok(None);
        };
        let key = std::fs::read_to_string(path).map_err(|error| ApiKeyError::Unreadable {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        match key.trim() {
            "" => Err(ApiKeyError::Empty { path: path.clone() }),
            key if !is_header_value(key) => Err(ApiKeyError::NoKey { path: path.clone() }),
            key => Ok(Some(key.to_owned())),
        }
    }
}

/// What a key may be: it travels as the value of a header.
const ALLOWED_KEY: &str = "visible ASCII characters on one line, without blanks";

fn is_header_value(key: &str) -> bool {
    key.chars().all(|letter| letter.is_ascii_graphic())
}

/// Why the file of `store.api_key_file` gives no key. Never shows what is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// It is missing, or no text.
    #[error("cannot read store.api_key_file {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Nothing is in it.
    #[error("store.api_key_file {} is empty; it holds the key and nothing else", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// What is in it cannot be a key.
    #[error("store.api_key_file {} holds no key; allowed is {ALLOWED_KEY}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
}

impl From<ApiKeyError> for StoreError {
    fn from(error: ApiKeyError) -> Self {
        Self::Fatal(error.to_string())
    }
}

/// Names end up in folder names and URLs.
fn check_name(violations: &mut Vec<Violation>, key: &str, name: &str) {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let first_fits = name.starts_with(|letter: char| letter.is_ascii_alphanumeric());
    if !first_fits || name.len() > 200 || !name.chars().all(fits) {
        violations.push(Violation::new(
            key,
            name,
            "1 to 200 letters, digits, '.', '_' and '-', a letter or digit first",
        ));
    }
}

/// What matters of a server's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    /// Whether the connection is encrypted.
    pub(crate) tls: bool,
    /// Whether it stays on this machine.
    pub(crate) loopback: bool,
}

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        const ALLOWED: &str = "an address such as http://localhost:6334 or https://host:6334";
        const NO_USER: &str = "an address such as https://host:6334 without user and password, which \
                               are not taken; a key belongs to store.api_key";
        if url.contains('@') {
            return Err(NO_USER);
        }
        let uri = Uri::from_str(url).map_err(|_| ALLOWED)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(ALLOWED),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(ALLOWED)?;
        // The parser takes a port that is no number for none, and credentials for part of the host.
        let rest = uri.authority().ok_or(ALLOWED)?.as_str().strip_prefix(host);
        let port = uri.port_u16().filter(|port| *port > 0);
        match (rest, port) {
            (Some(""), None) => {}
            (Some(rest), Some(port)) if rest == format!(":{port}") => {}
            _ => return Err(ALLOWED),
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = bare.eq_ignore_ascii_case("localhost")
            || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        Ok(Self { tls, loopback })
    }
}

/// A key that no log shows.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ApiKey(String);

impl ApiKey {
    /// Keeps `key` out of sight.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        !self.0.is_empty()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.is_set() { "(set)" } else { "(none)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(settings: &StoreSettings) -> Vec<String> {
        let mut violations = Vec::new();
        settings.validate(&mut violations);
        violations
            .into_iter()
            .map(|violation| violation.key)
            .collect()
    }

    fn server(url: &str) -> StoreSettings {
        StoreSettings {
            kind: StoreKind::Qdrant,
            url: url.into(),
            ..StoreSettings::default()
        }
    }

    #[test]
    fn the_shipped_file_says_what_the_code_does() {
        let shipped = include_str!("../../config/default.toml");
        let table: toml::Table = shipped.parse().unwrap();
        let section: StoreSettings = table["store"].clone().try_into().unwrap();
        assert_eq!(section, StoreSettings::default());
        assert_eq!(violations(&section), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let section = toml::from_str::<StoreSettings>("colection = \"a\"");
        assert!(section.unwrap_err().to_string().contains("colection"));
    }

    #[test]
    fn values_out_of_bounds_are_named() {
        let settings = StoreSettings {
            batch_points: Some(0),
            max_batch_bytes: 9_000_000,
            collection: "a/b".into(),
            ..StoreSettings::default()
        };
        assert_eq!(
            violations(&settings),
            ["batch_points", "max_batch_bytes", "collection"]
        );
        for url in [
            "localhost:6334",
            "http://",
            "ftp://a:1",
            "http://a:99999",
            "http://me:key@a:1",
        ] {
            assert_eq!(violations(&server(url)), ["url"], "{url}");
        }
    }

    #[test]
    fn a_key_crosses_no_network_in_the_clear() {
        for (url, allowed) in [
            ("http://10.0.0.7:6334", false),
            ("http://qdrant:6334", false),
            ("http://localhost.example.org:6334", false),
            ("http://localhost:6334", true),
            ("http://127.0.0.1:6334", true),
            ("http://[::1]:6334", true),
            ("https://qdrant.example.org:6334", true),
        ] {
            let mut settings = server(url);
            assert!(violations(&settings).is_empty(), "{url} without key");
            settings.api_key = ApiKey::new("secret");
            assert_eq!(violations(&settings).is_empty(), allowed, "{url}");
        }
    }

    #[test]
    fn a_key_that_is_no_header_value_is_refused_unseen() {
        for key in ["hunter\n2", "hunter 2", "hünter2", "\u{7f}"] {
            let mut settings = server("http://localhost:6334");
            settings.api_key = ApiKey::new(key);
            let mut violations = Vec::new();
            settings.validate(&mut violations);
            let shown: Vec<_> = violations.iter().map(|it| (&*it.key, &*it.value)).collect();
            assert_eq!(shown, [("api_key", "(secret)")]);
        }
    }

    #[test]
    fn a_password_in_the_address_is_refused_unseen() {
        let mut violations = Vec::new();
        server("http://me:hunter2@host:6334").validate(&mut violations);
        let violation = violations.first().unwrap();
        assert_eq!(violation.value, "http://(secret)@host:6334");
        assert!(violation.allowed.contains("store.api_key"));
    }

    #[test]
    fn no_debug_output_shows_the_key() {
        let mut settings = server("http://localhost:6334");
        settings.api_key = ApiKey::new("hunter2");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn the_key_comes_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "hunter2\n").unwrap();
        let mut settings = server("http://localhost:6334");
        settings.api_key_file = Some(path.clone());
        assert_eq!(settings.resolve_api_key(), Ok(Some("hunter2".into())));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(
            settings.resolve_api_key(),
            Err(ApiKeyError::Empty { .. })
        ));
        std::fs::write(&path, "hunter\n2\n").unwrap();
        let error = settings.resolve_api_key().unwrap_err();
        assert!(matches!(error, ApiKeyError::NoKey { .. }));
        assert!(!format!("{error} {error:?}").contains("hunter"));
    }
}
