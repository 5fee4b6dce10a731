//! The store on a Qdrant server, over gRPC. This file owns the connection, the requests in flight and
//! their bounds; `condition`, `convert` and `error` are pure.
//!
//! Every write asks the server to wait until it is applied, and counts as done only when the answer
//! says Completed. The client repeats a call once by itself after a broken connection: harmless,
//! because every write is conditional and repeats to the same end.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use qdrant_client::qdrant::{
    CountPoints, DeletePointsBuilder, GetPointsBuilder, QueryPointsBuilder,
};
use qdrant_client::{Qdrant, QdrantError};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use crate::document::{DocumentId, LatestTime};
use crate::store::{
    Admin, CollectionInfo, PointFilter, PointWrite, SearchHit, Store, StoreError, StoreSettings,
    WriteOutcome,
};

mod admin;
mod condition;
mod convert;
mod error;
mod write;

use error::{completed, from_client, redacted};

/// Conditional writes came with this version; an older server would ignore the condition and let
/// older documents overwrite newer ones.
const OLDEST_SERVER: (u64, u64) = (1, 16);
/// From this version on a server evaluates the condition of a write once; an older one evaluates it again
/// when it replays its log after a crash (qdrant/qdrant#9575).
const FIRST_SOUND_REPLAY: (u64, u64) = (1, 19);
/// How long a start may take until it is given up.
const START_BOUND: Duration = Duration::from_secs(25);

/// A collection on a Qdrant server.
pub struct QdrantStore {
    client: Qdrant,
    /// Kept out of every message.
    key: Option<String>,
    settings: StoreSettings,
    in_flight: Semaphore,
    /// Read once, before the first write.
    vector: OnceLock<Vector>,
    /// What the server's version does not promise.
    warnings: Vec<String>,
    /// When the collection was last seen to be the one that writes are made for.
    fits: Mutex<Option<Instant>>,
}

struct Vector {
    name: String,
    size: usize,
}

impl QdrantStore {
    /// Connects and looks whether the server can do what is asked of it. The collection need not exist.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] where the server is out of reach (within half a minute), refuses the
    /// key, or is too old.
    pub async fn connect(settings: &StoreSettings) -> Result<Self, StoreError> {
        let mut config = Qdrant::from_url(&settings.url)
            .timeout(settings.timeout())
            .connect_timeout(settings.connect_timeout())
            .skip_compatibility_check();
        config.set_pool_size(settings.concurrency.min(4));
        let key = settings.resolve_api_key()?;
        if let Some(key) = &key {
            config.set_api_key(key);
        }
        let client = config.build().map_err(from_client)?;
        let mut store = Self {
            client,
            key,
            settings: settings.clone(),
            in_flight: Semaphore::new(settings.concurrency),
            vector: OnceLock::new(),
            warnings: Vec::new(),
            fits: Mutex::default(),
        };
        let version = store.greet().await?;
        store.warnings.extend(warning_of(&version));
        Ok(store)
    }

    /// Looks whether the server answers, takes the key and is new enough; gives its version.
    async fn greet(&self) -> Result<String, StoreError> {
        let url = &self.settings.url;
        // A health check needs no key everywhere, so that the key is tried too.
        let questions = async {
            let health = self
                .client
                .health_check()
                .await
                .map_err(|error| self.failed(error))?;
            let name = &self.settings.collection;
            self.client
                .collection_exists(name)
                .await
                .map_err(|error| self.failed(error))?;
            Ok(health.version)
        };
        let version = tokio::time::timeout(START_BOUND, questions)
            .await
            .unwrap_or_else(|_| {
                Err(StoreError::Transient(format!(
                    "no answer within {} s",
                    START_BOUND.as_secs()
                )))
            })
            .map_err(|error| match error {
                StoreError::Transient(reason) => StoreError::Fatal(format!(
                    "cannot reach the Qdrant server at {url} ({reason}); check store.url (the gRPC \
                     port, usually 6334) and that the server runs"
                )),
                other => other,
            })?;
        match parse_version(&version) {
            Some(found) if found < OLDEST_SERVER => Err(StoreError::Fatal(format!(
                "the Qdrant server at {url} has version {version}; {}.{} or newer is needed, because \
                 an older one lets older documents overwrite newer ones",
                OLDEST_SERVER.0, OLDEST_SERVER.1
            ))),
            Some(_) => Ok(version),
            None => {
                tracing::warn!(
                    version,
                    "the Qdrant server names no version that can be read"
                );
                Ok(version)
            }
        }
    }

    /// An error of the client, without the key should the server repeat it.
    fn failed(&self, error: QdrantError) -> StoreError {
        redacted(from_client(error), self.key.as_deref())
    }

    fn collection_name(&self) -> &str {
        &self.settings.collection
    }

    async fn vector(&self) -> Result<&Vector, StoreError> {
        if let Some(vector) = self.vector.get() {
            return Ok(vector);
        }
        let found = self.describe().await?.ok_or_else(|| {
            StoreError::Fatal(format!(
                "the collection {:?} does not exist; create it with `tcbert-worker migrate apply`",
                self.collection_name()
            ))
        })?;
        Ok(self.vector.get_or_init(|| Vector {
            name: found.vector_name,
            size: found.vector_size,
        }))
    }

    async fn describe(&self) -> Result<Option<CollectionInfo>, StoreError> {
        let name = self.collection_name();
        let exists = self.client.collection_exists(name).await;
        if !exists.map_err(|error| self.failed(error))? {
            return Ok(None);
        }
        let response = self.client.collection_info(name).await;
        let info = response.map_err(|error| self.failed(error))?.result;
        // Only for the name: where the aliases may not be listed, the configured one serves.
        let alias_of = self.resolve(name).await.ok().flatten();
        let real_name = alias_of.unwrap_or_else(|| name.to_owned());
        info.and_then(|info| convert::collection(real_name, info, &self.settings))
            .map(Some)
            .ok_or_else(|| {
                StoreError::Fatal(format!(
                    "the collection {name:?} does not hold exactly one dense vector per point; set \
                     store.collection to another name"
                ))
            })
    }

    async fn resolve(&self, alias: &str) -> Result<Option<String>, StoreError> {
        let answer = self.client.list_aliases().await;
        let aliases = answer.map_err(|error| self.failed(error))?.aliases;
        Ok(aliases
            .into_iter()
            .find(|found| found.alias_name == alias)
            .map(|found| found.collection_name))
    }

    async fn count_matching(
        &self,
        filter: qdrant_client::qdrant::Filter,
    ) -> Result<u64, StoreError> {
        let request = CountPoints {
            collection_name: self.collection_name().to_owned(),
            filter: Some(filter),
            exact: Some(true),
            ..CountPoints::default()
        };
        let answer = self
            .client
            .count(request)
            .await
            .map_err(|error| self.failed(error))?;
        Ok(answer.result.map(|result| result.count).unwrap_or_default())
    }
}

fn closed() -> StoreError {
    StoreError::Fatal("the store has been closed".into())
}

/// Major and minor of a version such as `1.16.3` or `1.17.0-dev`.
fn parse_version(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// What to say of a server of this version; nothing where it keeps every promise, or is not known.
fn warning_of(version: &str) -> Option<String> {
    let found = parse_version(version)?;
    (found < FIRST_SOUND_REPLAY).then(|| {
        format!(
            "the Qdrant server has version {version}: after a crash a server below {}.{} evaluates the conditions \
             of its last writes again, and where a deletion marker has been removed since, an older document can \
             come back; use {0}.{1} or newer for the whole guarantee",
            FIRST_SOUND_REPLAY.0, FIRST_SOUND_REPLAY.1
        )
    })
}

impl Store for QdrantStore {
    fn write(
        &self,
        batch: Vec<PointWrite>,
        latest: LatestTime,
    ) -> BoxFuture<'_, Result<WriteOutcome, StoreError>> {
        Box::pin(self.write_batch(batch, latest))
    }

    fn search(
        &self,
        vector: Vec<f32>,
        filter: PointFilter,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<SearchHit>, StoreError>> {
        Box::pin(async move {
            let name = self.vector().await?.name.clone();
            let mut request = QueryPointsBuilder::new(self.collection_name())
                .query(vector)
                .filter(condition::matching(&filter))
                .limit(limit as u64)
                .with_payload(true);
            if !name.is_empty() {
                request = request.using(name);
            }
            let answer = self
                .client
                .query(request)
                .await
                .map_err(|error| self.failed(error))?;
            Ok(answer
                .result
                .into_iter()
                .map(|point| SearchHit {
                    point_id: convert::uuid(point.id),
                    score: point.score,
                    payload: convert::json(point.payload),
                })
                .collect())
        })
    }

    fn count(&self, filter: PointFilter) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.count_matching(condition::matching(&filter)))
    }

    fn fetch(
        &self,
        id: DocumentId,
    ) -> BoxFuture<'_, Result<Option<Map<String, Value>>, StoreError>> {
        Box::pin(async move {
            let ids = vec![id.point_id().to_string().into()];
            let request = GetPointsBuilder::new(self.collection_name(), ids).with_payload(true);
            let answer = self.client.get_points(request).await;
            let found = answer
                .map_err(|error| self.failed(error))?
                .result
                .into_iter()
                .next();
            Ok(found.map(|point| convert::json(point.payload)))
        })
    }

    fn collection(&self) -> BoxFuture<'_, Result<Option<CollectionInfo>, StoreError>> {
        Box::pin(self.describe())
    }

    fn remove_markers(&self, before: jiff::Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let filter = condition::markers_before(before);
            let markers = self.count_matching(filter.clone()).await?;
            if markers > 0 {
                let request = DeletePointsBuilder::new(self.collection_name())
                    .points(filter)
                    .wait(true);
                let answer = self.client.delete_points(request).await;
                completed(&answer.map_err(|error| self.failed(error))?)?;
            }
            Ok(markers)
        })
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.in_flight.close();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("1.16.3"), Some((1, 16)));
        assert_eq!(parse_version("v1.20.0-dev"), Some((1, 20)));
        assert_eq!(parse_version(""), None);
        assert!(parse_version("1.9.1") < Some(OLDEST_SERVER));
    }

    #[test]
    fn a_server_that_evaluates_conditions_again_is_warned_about() {
        for version in ["1.16.0", "1.18.3", "v1.18.0-dev"] {
            let warning = warning_of(version).unwrap();
            assert!(
                warning.contains(version) && warning.contains("1.19"),
                "{warning}"
            );
        }
        for version in ["1.19.0", "1.20.1", "2.0.0", ""] {
            assert_eq!(warning_of(version), None, "{version}");
        }
    }
}
