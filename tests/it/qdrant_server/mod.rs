//! A Qdrant server for tests: the generated service traits in front of Qdrant's own engine, on a free
//! port of the loopback, with faults on demand. What filters and conditional writes mean is decided
//! by the engine, not here.

/// Calls that the store never makes. Expands to async functions whose trait is boxed by hand, because
/// the attribute on the implementation does not see through a macro.
macro_rules! refused {
    ($($name:ident($request:ty) -> $response:ty;)*) => {
        $(
            fn $name<'life, 'asynchronous>(
                &'life self,
                _request: tonic::Request<$request>,
            ) -> std::pin::Pin<Box<
                dyn Future<Output = Result<tonic::Response<$response>, tonic::Status>>
                    + Send + 'asynchronous,
            >>
            where
                'life: 'asynchronous,
                Self: 'asynchronous,
            {
                Box::pin(async { Err(tonic::Status::unimplemented(stringify!($name))) })
            }
        )*
    };
}

mod collections;
mod faults;
mod filter;
mod points;
mod state;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use qdrant_client::qdrant::collections_server::CollectionsServer;
use qdrant_client::qdrant::points_server::PointsServer;
use qdrant_client::qdrant::qdrant_server::QdrantServer;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Status};

// The bench shares this server and makes nothing go wrong.
#[allow(unused_imports)]
pub(crate) use faults::{Fault, Faults};
pub(crate) use state::Seen;

/// Bytes of a request, as a server has it by default.
const MAX_REQUEST_BYTES: usize = 32 * 1024 * 1024;

/// How the server shall be.
#[derive(Clone)]
pub(crate) struct Options {
    /// Version that the health check names.
    pub(crate) version: String,
    /// Key that every call must bring.
    pub(crate) api_key: Option<String>,
    /// Certificate and key, both PEM, for https.
    pub(crate) identity: Option<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: "1.16.0".into(),
            api_key: None,
            identity: None,
        }
    }
}

/// A running server; dropping it ends it.
pub(crate) struct TestServer {
    address: SocketAddr,
    options: Options,
    state: Arc<state::State>,
    runtime: Option<Runtime>,
}

impl TestServer {
    /// Starts a server on a free port.
    pub(crate) fn start(options: Options) -> Self {
        let mut server = Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            state: Arc::new(state::State::new(&options.version)),
            options,
            runtime: None,
        };
        server.resume();
        server
    }

    /// Its gRPC address.
    pub(crate) fn url(&self) -> String {
        match self.options.identity {
            Some(_) => format!("https://localhost:{}", self.address.port()),
            None => format!("http://127.0.0.1:{}", self.address.port()),
        }
    }

    /// What goes wrong.
    pub(crate) fn faults(&self) -> &Faults {
        &self.state.faults
    }

    /// What has been seen.
    pub(crate) fn seen(&self) -> &Seen {
        &self.state.seen
    }

    /// Breaks every connection and listens no more; the points stay.
    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Listens again, on the same port.
    pub(crate) fn resume(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let standard = std::net::TcpListener::bind(self.address).unwrap();
        standard.set_nonblocking(true).unwrap();
        self.address = standard.local_addr().unwrap();
        let state = Arc::clone(&self.state);
        let options = self.options.clone();
        runtime.spawn(serve(standard, state, options));
        self.runtime = Some(runtime);
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(listener: std::net::TcpListener, state: Arc<state::State>, options: Options) {
    let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
    let key = options.api_key;
    let check = move |request: Request<()>| match &key {
        Some(key)
            if request
                .metadata()
                .get("api-key")
                .is_none_or(|sent| sent != key.as_str()) =>
        {
            Err(Status::unauthenticated(
                "Must provide an API key or an Authorization bearer token",
            ))
        }
        _ => Ok(request),
    };
    let mut builder = Server::builder();
    if let Some((certificate, key)) = options.identity {
        let identity = Identity::from_pem(certificate, key);
        builder = builder
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap();
    }
    let points = PointsServer::new(points::PointsService(Arc::clone(&state)))
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let collections = collections::CollectionsService(Arc::clone(&state));
    let health = collections::HealthService(state);
    builder
        .add_service(tonic::service::interceptor::InterceptedService::new(
            points,
            check.clone(),
        ))
        .add_service(CollectionsServer::with_interceptor(collections, check))
        .add_service(QdrantServer::new(health))
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}
