//! The `[store]` section: which store, where, how much at once. Knows no engine.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use tonic::codegen::http::Uri;

use crate::keys::{Declared, Violation, section, without_user};
use crate::store::StoreError;

/// Most bytes of one request; a server takes 32 MB, writes get slow long before.
pub const MAX_REQUEST_BYTES: usize = 5_000_000;

/// Which store points go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

section! {
    /// Where tagged documents go.
    pub struct StoreSettings in "store" {
        /// "embedded": Qdrant's engine inside the worker, in the folder `path`; one process at a time. "qdrant": a
        /// Qdrant server (1.16 or newer) at `url`.
        kind: StoreKind = StoreKind::Embedded;
        /// gRPC address of the Qdrant server: `http://host:6334` or `https://host:6334`. A private certificate
        /// authority is trusted by naming its file in the environment variable SSL_CERT_FILE.
        url: String = "http://localhost:6334".to_owned();
        /// API key of the server; better set as TCBERT__STORE__API_KEY or through api_key_file. Rejected over plain
        /// http to any host but this one.
        api_key: ApiKey = ApiKey::default();
        /// Path of a file that holds the API key and nothing else.
        api_key_file: Option<PathBuf> = None, example "/run/secrets/qdrant-key";
        /// Folder of the embedded store; made when it is missing.
        path: PathBuf = PathBuf::from("data/store");
        /// Collection that is written and searched; letters, digits, '.', '_', '-', at most 200.
        collection: String = "documents".to_owned();
        /// A second name for the collection that readers can use: migrations create it, and
        /// `migrate apply --switch-alias` moves it from an older collection in one step. Empty: none.
        alias: String = String::new();
        /// Apply pending migrations when the worker starts; off, `tcbert-worker migrate apply` does it.
        apply_migrations: bool = true;
        /// Most points of one request. Left out: 2048 for the embedded store, where a write costs dozens of
        /// synchronised files however many its points, 128 for a server.
        batch_points: Option<usize> = None, example 128, in 1..=4096;
        /// Most bytes of one request.
        max_batch_bytes: usize = 4_000_000, in 10_000..=MAX_REQUEST_BYTES;
        /// Most requests in flight to the server.
        concurrency: usize = 4, in 1..=64;
        /// How long one request may take, in milliseconds. A request that takes longer is sent again: writing twice is
        /// harmless.
        timeout_ms: u64 = 20_000, in 100..=600_000;
        /// How long connecting may take, in milliseconds.
        connect_timeout_ms: u64 = 5_000, in 100..=25_000;
        /// Keep the body of a document in its point (the title always is).
        keep_text: bool = false;
        /// How long the marker of a deletion stays, in hours. Within it no late older record brings the document
        /// back.
        tombstone_retention_hours: u64 = 168, in 1..=24 * 3660;
        /// Embedded store: free disk in megabytes below which it takes no writes; the worker waits and continues when
        /// there is room again. Less than 64 counts as 64: the store maps its files, and a full disk would end the
        /// process. 0 turns the check off for writes, not where a store is opened.
        min_free_mb: u64 = 256;
        /// Embedded store: megabytes of files that its write-ahead log may have before it starts over, which stops
        /// writes for a moment. On Linux the files are empty but for their ends: the log is dropped before it reaches
        /// the disk.
        max_log_mb: u64 = 1024, in 64..=1_000_000;
        /// Embedded store: number of points from which a search graph (HNSW) is built over the finished part of the
        /// collection; building stops writes meanwhile. 0: never, every search reads all vectors, which is exact and
        /// takes about 10 ms for 100000 points of width 256.
        graph_from_points: usize = 0;
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

    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = self.out_of_range();
        check_name(&mut violations, "collection", &self.collection);
        if !self.alias.is_empty() {
            check_name(&mut violations, "alias", &self.alias);
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
            StoreKind::Qdrant => self.validate_server(&mut violations),
        }
        violations
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

/// Hidden, as what is serialised is what people are shown.
impl Serialize for ApiKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_set() { "***" } else { "" })
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
        let violations = settings.violations().into_iter();
        violations.map(|violation| violation.key).collect()
    }

    fn server(url: &str) -> StoreSettings {
        StoreSettings {
            kind: StoreKind::Qdrant,
            url: url.into(),
            ..StoreSettings::default()
        }
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
            let violations = settings.violations();
            let shown: Vec<_> = violations.iter().map(|it| (&*it.key, &*it.value)).collect();
            assert_eq!(shown, [("api_key", "(secret)")]);
        }
    }

    #[test]
    fn a_password_in_the_address_is_refused_unseen() {
        let violations = server("http://me:hunter2@host:6334").violations();
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
