//! The collections service, and the health check.

use std::collections::HashMap;
use std::sync::Arc;

use ::qdrant_client::qdrant::alias_operations::Action;
use ::qdrant_client::qdrant::collections_server::Collections;
use ::qdrant_client::qdrant::qdrant_server::Qdrant;
use ::qdrant_client::qdrant::*;
use tonic::{Request, Response, Status};

use super::state::{Collection, State};

pub(crate) struct CollectionsService(pub(crate) Arc<State>);
pub(crate) struct HealthService(pub(crate) Arc<State>);

type Answer<T> = Result<Response<T>, Status>;

fn done() -> Answer<CollectionOperationResponse> {
    Ok(Response::new(CollectionOperationResponse {
        result: true,
        time: 0.0,
    }))
}

fn describe(collection: &Collection) -> CollectionInfo {
    let info = collection.shard.info();
    let params = VectorParamsBuilder::new(collection.vector_size, Distance::Cosine).build();
    let config = if collection.vector_name.is_empty() {
        vectors_config::Config::Params(params)
    } else {
        vectors_config::Config::ParamsMap(VectorParamsMap {
            map: HashMap::from([(collection.vector_name.clone(), params)]),
        })
    };
    let payload_schema = info
        .payload_schema
        .into_iter()
        .map(|(key, index)| {
            let data_type = match index.data_type {
                qdrant_edge::PayloadSchemaType::Keyword => PayloadSchemaType::Keyword,
                qdrant_edge::PayloadSchemaType::Integer => PayloadSchemaType::Integer,
                qdrant_edge::PayloadSchemaType::Datetime => PayloadSchemaType::Datetime,
                qdrant_edge::PayloadSchemaType::Bool => PayloadSchemaType::Bool,
                _ => PayloadSchemaType::UnknownType,
            };
            let schema = PayloadSchemaInfo {
                data_type: data_type.into(),
                params: None,
                points: Some(index.points as u64),
            };
            (key.to_string(), schema)
        })
        .collect();
    CollectionInfo {
        status: CollectionStatus::Green.into(),
        segments_count: info.segments_count as u64,
        config: Some(CollectionConfig {
            params: Some(CollectionParams {
                vectors_config: Some(VectorsConfig {
                    config: Some(config),
                }),
                ..CollectionParams::default()
            }),
            strict_mode_config: collection.strict_mode.clone(),
            optimizer_config: Some(OptimizersConfigDiff {
                indexing_threshold: Some(collection.indexing_threshold),
                ..OptimizersConfigDiff::default()
            }),
            metadata: collection.metadata.clone(),
            ..CollectionConfig::default()
        }),
        payload_schema,
        points_count: Some(info.points_count as u64),
        ..CollectionInfo::default()
    }
}

#[tonic::async_trait]
impl Collections for CollectionsService {
    async fn get(
        &self,
        request: Request<GetCollectionInfoRequest>,
    ) -> Answer<GetCollectionInfoResponse> {
        let name = request.into_inner().collection_name;
        let info = self.0.with(&name, |collection| Ok(describe(collection)))?;
        Ok(Response::new(GetCollectionInfoResponse {
            result: Some(info),
            time: 0.0,
        }))
    }

    async fn create(
        &self,
        request: Request<CreateCollection>,
    ) -> Answer<CollectionOperationResponse> {
        self.0.create(request.into_inner())?;
        done()
    }

    async fn update(
        &self,
        request: Request<UpdateCollection>,
    ) -> Answer<CollectionOperationResponse> {
        let request = request.into_inner();
        self.0.with(&request.collection_name, |collection| {
            collection.metadata.extend(request.metadata);
            if let Some(threshold) = request
                .optimizers_config
                .and_then(|optimizers| optimizers.indexing_threshold)
            {
                collection.indexing_threshold = threshold;
            }
            if request.strict_mode_config.is_some() {
                collection.strict_mode = request.strict_mode_config;
            }
            Ok(())
        })?;
        done()
    }

    async fn delete(
        &self,
        request: Request<DeleteCollection>,
    ) -> Answer<CollectionOperationResponse> {
        let name = request.into_inner().collection_name;
        self.0.collections.lock().remove(&name);
        done()
    }

    async fn update_aliases(
        &self,
        request: Request<ChangeAliases>,
    ) -> Answer<CollectionOperationResponse> {
        let mut aliases = self.0.aliases.lock();
        for operation in request.into_inner().actions {
            match operation.action {
                Some(Action::CreateAlias(create)) => {
                    aliases.insert(create.alias_name, create.collection_name);
                }
                Some(Action::DeleteAlias(delete)) => {
                    aliases.remove(&delete.alias_name);
                }
                other => return Err(Status::unimplemented(format!("{other:?}"))),
            }
        }
        done()
    }

    async fn list_aliases(
        &self,
        _request: Request<ListAliasesRequest>,
    ) -> Answer<ListAliasesResponse> {
        let aliases = self.0.aliases.lock();
        let aliases = aliases
            .iter()
            .map(|(alias, collection)| AliasDescription {
                alias_name: alias.clone(),
                collection_name: collection.clone(),
            })
            .collect();
        Ok(Response::new(ListAliasesResponse { aliases, time: 0.0 }))
    }

    async fn collection_exists(
        &self,
        request: Request<CollectionExistsRequest>,
    ) -> Answer<CollectionExistsResponse> {
        let name = request.into_inner().collection_name;
        let exists = self.0.with(&name, |_| Ok(())).is_ok();
        Ok(Response::new(CollectionExistsResponse {
            result: Some(CollectionExists { exists }),
            time: 0.0,
        }))
    }

    refused! {
        list(ListCollectionsRequest) -> ListCollectionsResponse;
        list_collection_aliases(ListCollectionAliasesRequest) -> ListAliasesResponse;
        collection_cluster_info(CollectionClusterInfoRequest) -> CollectionClusterInfoResponse;
        update_collection_cluster_setup(UpdateCollectionClusterSetupRequest) -> UpdateCollectionClusterSetupResponse;
        create_shard_key(CreateShardKeyRequest) -> CreateShardKeyResponse;
        delete_shard_key(DeleteShardKeyRequest) -> DeleteShardKeyResponse;
        list_shard_keys(ListShardKeysRequest) -> ListShardKeysResponse;
    }
}

#[tonic::async_trait]
impl Qdrant for HealthService {
    async fn health_check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Answer<HealthCheckReply> {
        Ok(Response::new(HealthCheckReply {
            title: "qdrant - vector search engine (test server)".into(),
            version: self.0.version.clone(),
            commit: None,
        }))
    }
}
