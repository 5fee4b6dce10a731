//! The admin server: `/healthz`, `/readyz` and `/metrics` over plain HTTP.
//! Must not know what is measured, and shows nothing of the configuration.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::health::{Health, Part};
use super::metrics::Metrics;
use crate::keys::{Violation, section};

const ALLOWED_ADDRESSES: &str =
    "an address with a port such as \"127.0.0.1:9464\", or nothing to have no admin server";

section! {
    /// The admin server with /healthz, /readyz and /metrics.
    #[derive(Eq)]
    pub struct AdminSettings in "admin" {
        /// Address and port of the admin server, such as "127.0.0.1:9464". Any other address than loopback can be
        /// reached from other machines. Empty: no admin server.
        listen: String = String::new();
    }
}

impl AdminSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        match self.address() {
            Ok(_) => Vec::new(),
            Err(_) => vec![Violation::new("listen", &self.listen, ALLOWED_ADDRESSES)],
        }
    }

    /// The address to listen on; `None` where there is to be no admin server.
    ///
    /// # Errors
    /// When it is not an address with a port.
    pub fn address(&self) -> Result<Option<SocketAddr>, AdminError> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        let address = self.listen.replacen("localhost:", "127.0.0.1:", 1);
        match address.parse() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(AdminError::Address(self.listen.clone())),
        }
    }
}

/// A running admin server; it ends when dropped.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Shown {
    health: Health,
    metrics: Metrics,
}

impl AdminServer {
    /// Listens on `address` and answers until dropped.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(
        address: SocketAddr,
        health: Health,
        metrics: Metrics,
    ) -> Result<Self, AdminError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| AdminError::Listen { address, source })?;
        let address = listener
            .local_addr()
            .map_err(|source| AdminError::Listen { address, source })?;
        if !address.ip().is_loopback() {
            tracing::warn!(%address, "the admin server can be reached from other machines");
        }
        tracing::info!(%address, "admin server ready");
        let router = router(Shown { health, metrics });
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the admin server ended");
            }
        });
        Ok(Self { address, task })
    }

    /// Where it listens; the port is real where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .with_state(shown)
}

async fn healthz(State(shown): State<Shown>) -> Response {
    answer(shown.health.alive())
}

async fn readyz(State(shown): State<Shown>) -> Response {
    answer(shown.health.ready())
}

fn answer(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn render_metrics(State(shown): State<Shown>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    for part in Part::ALL {
        shown
            .metrics
            .part_is_well(part.name(), shown.health.is_well(part));
    }
    (kind, shown.metrics.render()).into_response()
}

/// Why there is no admin server.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Not an address with a port.
    #[error("admin.listen = {0:?} is no address; allowed is {ALLOWED_ADDRESSES}")]
    Address(String),
    /// Taken, or not ours to listen on.
    #[error(
        "the admin server cannot listen on {address}: {source}; set admin.listen to a free address, or to nothing"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(server: &AdminServer, path: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn status(answer: &str) -> &str {
        answer.split(' ').nth(1).unwrap()
    }

    #[tokio::test]
    async fn health_readiness_and_metrics_are_shown() {
        let health = Health::new();
        let metrics = Metrics::new().unwrap();
        metrics.store_retry();
        let address = "127.0.0.1:0".parse().unwrap();
        let server = AdminServer::start(address, health.clone(), metrics)
            .await
            .unwrap();

        assert_eq!(status(&ask(&server, "/healthz").await), "200");
        let answer = ask(&server, "/readyz").await;
        assert_eq!(status(&answer), "503");
        assert!(answer.contains("starting"), "{answer}");

        health.set_started();
        assert_eq!(status(&ask(&server, "/readyz").await), "200");
        let answer = ask(&server, "/metrics").await;
        assert!(answer.contains("tcbert_store_retries_total 1"), "{answer}");
        assert!(answer.contains("text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("tcbert_well{part=\"store\"} 1"), "{answer}");
        health.set_trouble(Part::Store, "the store is full");
        let answer = ask(&server, "/metrics").await;
        assert!(answer.contains("tcbert_well{part=\"store\"} 0"), "{answer}");
        assert_eq!(status(&ask(&server, "/readyz").await), "503");
        assert_eq!(status(&ask(&server, "/healthz").await), "200");

        health.set_failed("the disk is gone");
        let answer = ask(&server, "/healthz").await;
        assert_eq!(status(&answer), "503");
        assert!(answer.contains("the disk is gone"), "{answer}");
        assert_eq!(status(&ask(&server, "/config").await), "404");
    }

    #[tokio::test]
    async fn a_taken_address_says_which_key_to_change() {
        let metrics = Metrics::new().unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let first = AdminServer::start(address, Health::new(), metrics.clone())
            .await
            .unwrap();
        let error = AdminServer::start(first.address(), Health::new(), metrics)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("admin.listen"), "{error}");
    }

    #[test]
    fn addresses_are_checked() {
        let read = |listen: &str| AdminSettings {
            listen: listen.to_owned(),
        };
        assert!(read("").address().unwrap().is_none());
        assert!(read("127.0.0.1:9464").violations().is_empty());
        assert!(read("localhost:9464").violations().is_empty());
        for wrong in ["9464", "127.0.0.1:99999", "somewhere"] {
            assert_eq!(read(wrong).violations().len(), 1, "{wrong}");
        }
    }
}
