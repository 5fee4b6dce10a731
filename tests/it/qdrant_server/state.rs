//! What the test server holds: collections, each a shard of Qdrant's engine in a temporary folder.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use qdrant_client::qdrant::vectors::VectorsOptions;
use qdrant_client::qdrant::{self, PointStruct, StrictModeConfig};
use qdrant_edge::{
    Distance, EdgeConfig, EdgeShard, EdgeVectorParams, OperationError, PointStructPersisted,
    UpdateOperation, VectorPersisted, VectorStructPersisted,
};
use tempfile::TempDir;
use tonic::Status;

use super::faults::Faults;
use super::filter::engine_id;

pub(crate) struct Collection {
    pub(crate) shard: EdgeShard,
    pub(crate) vector_name: String,
    pub(crate) vector_size: u64,
    pub(crate) metadata: HashMap<String, qdrant::Value>,
    pub(crate) strict_mode: Option<StrictModeConfig>,
    pub(crate) indexing_threshold: u64,
    _folder: TempDir,
}

/// What has been seen of requests, for tests of bounds.
#[derive(Default)]
pub(crate) struct Seen {
    /// Requests to write points.
    pub(crate) upserts: AtomicUsize,
    /// Most points of one request.
    pub(crate) most_points: AtomicUsize,
    /// Most bytes of one request.
    pub(crate) most_bytes: AtomicUsize,
    /// Requests to write points at one time.
    pub(crate) in_flight: AtomicUsize,
    /// The most of them.
    pub(crate) most_in_flight: AtomicUsize,
}

impl Seen {
    pub(crate) fn upsert(&self, points: usize, bytes: usize) {
        self.upserts.fetch_add(1, Ordering::SeqCst);
        self.most_points.fetch_max(points, Ordering::SeqCst);
        self.most_bytes.fetch_max(bytes, Ordering::SeqCst);
    }

    /// A request to write points is in flight until the guard is dropped, as it is when the client goes.
    pub(crate) fn enter(&self) -> InFlight<'_> {
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(now, Ordering::SeqCst);
        InFlight(&self.in_flight)
    }
}

/// A request in flight.
pub(crate) struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) struct State {
    pub(crate) collections: Mutex<BTreeMap<String, Collection>>,
    pub(crate) aliases: Mutex<BTreeMap<String, String>>,
    pub(crate) faults: Faults,
    pub(crate) seen: Seen,
    pub(crate) version: String,
}

impl State {
    pub(crate) fn new(version: &str) -> Self {
        Self {
            collections: Mutex::default(),
            aliases: Mutex::default(),
            faults: Faults::default(),
            seen: Seen::default(),
            version: version.to_owned(),
        }
    }

    pub(crate) fn create(&self, request: qdrant::CreateCollection) -> Result<(), Status> {
        use qdrant::vectors_config::Config;
        let vectors = request.vectors_config.and_then(|config| config.config);
        let (vector_name, params) = match vectors {
            Some(Config::Params(params)) => (String::new(), params),
            Some(Config::ParamsMap(map)) => map
                .map
                .into_iter()
                .next()
                .ok_or_else(|| Status::invalid_argument("no vector"))?,
            None => return Err(Status::invalid_argument("no vectors")),
        };
        let mut collections = self.collections.lock();
        if collections.contains_key(&request.collection_name) {
            return Err(Status::invalid_argument(format!(
                "Wrong input: Collection `{}` already exists!",
                request.collection_name
            )));
        }
        let folder = tempfile::tempdir().map_err(|error| Status::internal(error.to_string()))?;
        let size = usize::try_from(params.size).unwrap_or_default();
        let config = EdgeConfig::builder()
            .vector(
                vector_name.as_str(),
                EdgeVectorParams::builder(size, Distance::Cosine).build(),
            )
            .build();
        let shard = EdgeShard::new(folder.path(), config).map_err(status)?;
        collections.insert(
            request.collection_name,
            Collection {
                shard,
                vector_name,
                vector_size: params.size,
                metadata: request.metadata,
                strict_mode: request.strict_mode_config,
                indexing_threshold: 20_000,
                _folder: folder,
            },
        );
        Ok(())
    }

    /// Calls `work` with the collection of this name or alias.
    pub(crate) fn with<T>(
        &self,
        name: &str,
        work: impl FnOnce(&mut Collection) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let name = self
            .aliases
            .lock()
            .get(name)
            .cloned()
            .unwrap_or_else(|| name.to_owned());
        let mut collections = self.collections.lock();
        let collection = collections.get_mut(&name).ok_or_else(|| {
            Status::not_found(format!("Not found: Collection `{name}` doesn't exist!"))
        })?;
        work(collection)
    }
}

impl Collection {
    pub(crate) fn update(&self, operation: UpdateOperation) -> Result<(), Status> {
        // Never flushed: the points live as long as the test.
        self.shard.update(operation).map_err(status)
    }

    pub(crate) fn point(&self, point: PointStruct) -> Result<PointStructPersisted, Status> {
        let id = point
            .id
            .ok_or_else(|| Status::invalid_argument("Empty ID is not allowed"))?;
        let options = point
            .vectors
            .and_then(|vectors| vectors.vectors_options)
            .ok_or_else(|| Status::invalid_argument("Expected some vectors"))?;
        let named = match options {
            VectorsOptions::Vector(vector) => HashMap::from([(String::new(), vector)]),
            VectorsOptions::Vectors(named) => named.vectors,
        };
        let vectors = named
            .into_iter()
            .map(|(name, vector)| match vector.vector {
                Some(qdrant::vector::Vector::Dense(dense)) => {
                    Ok((name, VectorPersisted::Dense(dense.data)))
                }
                other => Err(Status::unimplemented(format!("vector {other:?}"))),
            })
            .collect::<Result<_, _>>()?;
        let payload = point
            .payload
            .into_iter()
            .map(|(key, value)| (key, value.into_json()))
            .collect();
        Ok(PointStructPersisted {
            id: engine_id(&id)?,
            vector: VectorStructPersisted::Named(vectors),
            payload: Some(qdrant_edge::Payload(payload)),
        })
    }
}

/// The engine's error as the server words it.
#[expect(clippy::needless_pass_by_value, reason = "map_err hands it over")]
pub(crate) fn status(error: OperationError) -> Status {
    match &error {
        OperationError::ServiceError { .. } | OperationError::InconsistentStorage { .. } => {
            Status::internal(format!("Service internal error: {error}"))
        }
        _ => Status::invalid_argument(format!("Wrong input: {error}")),
    }
}
