//! What migrations ask of the server: collections, payload indexes, metadata, aliases.

use std::collections::{BTreeMap, HashMap};

use futures::future::BoxFuture;
use qdrant_client::qdrant::{
    CreateAliasBuilder, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder,
    DeleteFieldIndexCollectionBuilder, OptimizersConfigDiffBuilder, UpdateCollection,
    UpdateCollectionBuilder, VectorParamsBuilder, VectorParamsMap, VectorsConfig, vectors_config,
};
use serde_json::Value;

use crate::store::qdrant::QdrantStore;
use crate::store::qdrant::convert::{DISTANCE, field_type};
use crate::store::qdrant::error::completed;
use crate::store::{Admin, CollectionSpec, IndexKind, StoreError};

/// What a server uses where the collection says nothing, in kilobytes.
const SERVER_DEFAULT_THRESHOLD: u64 = 10_000;

impl QdrantStore {
    async fn create(
        &self,
        spec: CollectionSpec,
        metadata: BTreeMap<String, Value>,
    ) -> Result<(), StoreError> {
        let params = VectorParamsBuilder::new(spec.vector_size as u64, DISTANCE).build();
        let vectors = VectorsConfig {
            config: Some(vectors_config::Config::ParamsMap(VectorParamsMap {
                map: HashMap::from([(spec.vector_name, params)]),
            })),
        };
        let metadata: HashMap<String, Value> = metadata.into_iter().collect();
        let request = CreateCollectionBuilder::new(self.collection_name())
            .vectors_config(vectors)
            .metadata(metadata);
        let answer = self.client.create_collection(request).await;
        answer.map(drop).map_err(|error| self.failed(error))
    }

    async fn drop_index_of(&self, key: String) -> Result<(), StoreError> {
        let indexed = self
            .describe()
            .await?
            .is_some_and(|found| found.indexes.contains_key(&key));
        if !indexed {
            return Ok(());
        }
        let request =
            DeleteFieldIndexCollectionBuilder::new(self.collection_name(), key).wait(true);
        let answer = self.client.delete_field_index(request).await;
        completed(&answer.map_err(|error| self.failed(error))?)
    }

    async fn move_alias(&self, alias: String, to: Option<String>) -> Result<(), StoreError> {
        let now = self.resolve(&alias).await?;
        if now == to {
            return Ok(());
        }
        // Creating an alias that exists moves it; the server does so in one step.
        match to {
            None => self.client.delete_alias(alias.as_str()).await,
            Some(to) => {
                let request = CreateAliasBuilder::new(to, alias);
                self.client.create_alias(request).await
            }
        }
        .map(drop)
        .map_err(|error| self.failed(error))
    }
}

impl Admin for QdrantStore {
    fn create_collection(
        &self,
        spec: CollectionSpec,
        metadata: BTreeMap<String, Value>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.create(spec, metadata))
    }

    fn drop_collection(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let name = self.collection_name();
            let answer = self.client.delete_collection(name).await;
            answer.map(drop).map_err(|error| self.failed(error))
        })
    }

    fn create_index(&self, key: String, kind: IndexKind) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let request = CreateFieldIndexCollectionBuilder::new(
                self.collection_name(),
                key,
                field_type(kind),
            )
            .wait(true);
            let answer = self.client.create_field_index(request).await;
            completed(&answer.map_err(|error| self.failed(error))?)
        })
    }

    fn drop_index(&self, key: String) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.drop_index_of(key))
    }

    fn graph_threshold(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let answer = self.client.collection_info(self.collection_name()).await;
            let config = answer
                .map_err(|error| self.failed(error))?
                .result
                .and_then(|it| it.config);
            let optimizers = config.and_then(|config| config.optimizer_config);
            Ok(optimizers
                .and_then(|optimizers| optimizers.indexing_threshold)
                .unwrap_or(SERVER_DEFAULT_THRESHOLD))
        })
    }

    fn set_graph_threshold(&self, kilobytes: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let optimizers = OptimizersConfigDiffBuilder::default().indexing_threshold(kilobytes);
            let request =
                UpdateCollectionBuilder::new(self.collection_name()).optimizers_config(optimizers);
            let answer = self.client.update_collection(request).await;
            answer.map(drop).map_err(|error| self.failed(error))
        })
    }

    fn write_metadata(
        &self,
        metadata: BTreeMap<String, Value>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let request = UpdateCollection {
                collection_name: self.collection_name().to_owned(),
                metadata: metadata
                    .into_iter()
                    .map(|(key, value)| (key, value.into()))
                    .collect(),
                ..UpdateCollection::default()
            };
            let answer = self.client.update_collection(request).await;
            answer.map(drop).map_err(|error| self.failed(error))
        })
    }

    fn alias(&self, alias: String) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        Box::pin(async move { self.resolve(&alias).await })
    }

    fn set_alias(
        &self,
        alias: String,
        collection: Option<String>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.move_alias(alias, collection))
    }
}
