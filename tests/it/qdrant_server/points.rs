//! The points service: the calls that the store makes, each on the engine.

use std::sync::Arc;
use std::time::Duration;

use ::qdrant_client::qdrant::point_id::PointIdOptions;
use ::qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use ::qdrant_client::qdrant::points_server::Points;
use ::qdrant_client::qdrant::{self, *};
use prost::Message;
use qdrant_edge::{
    ConditionalInsertOperation, CountRequest, CreateIndex, FieldIndexOperations, NamedQuery,
    PayloadFieldSchema, PayloadSchemaType as EdgeSchema, PointInsertOperations, PointOperations,
    QueryEnum, QueryRequest, ScoringQuery, UpdateOperation, VectorInternal, VectorOperations,
    WithPayloadInterface, WithVector,
};
use tonic::{Request, Response, Status};

use super::faults::Fault;
use super::filter::{engine_filter, engine_id};
use super::state::{Collection, State, status};

pub(crate) struct PointsService(pub(crate) Arc<State>);

type Answer<T> = Result<Response<T>, Status>;

fn done(status: UpdateStatus) -> Answer<PointsOperationResponse> {
    Ok(Response::new(PointsOperationResponse {
        result: Some(UpdateResult {
            operation_id: Some(1),
            status: status.into(),
        }),
        time: 0.0,
        usage: None,
    }))
}

fn grpc_id(id: qdrant_edge::PointId) -> PointId {
    PointId {
        point_id_options: Some(match id {
            qdrant_edge::PointId::Uuid(id) => PointIdOptions::Uuid(id.to_string()),
            qdrant_edge::PointId::NumId(number) => PointIdOptions::Num(number),
        }),
    }
}

fn grpc_payload(
    payload: Option<qdrant_edge::Payload>,
) -> std::collections::HashMap<String, qdrant::Value> {
    payload
        .map(|payload| payload.0)
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key, value.into()))
        .collect()
}

impl PointsService {
    fn refuse_poison(&self, points: &[PointStruct]) -> Result<(), Status> {
        let poison = points.iter().find_map(|point| {
            let id = point.payload.get("id")?.as_str()?;
            self.0.faults.is_poison(id).then(|| id.to_owned())
        });
        match poison {
            Some(id) => Err(Status::invalid_argument(format!(
                "Wrong input: {id} is poison"
            ))),
            None => Ok(()),
        }
    }

    fn apply(&self, request: UpsertPoints) -> Result<(), Status> {
        self.refuse_poison(&request.points)?;
        self.0.with(&request.collection_name, |collection| {
            let points: Vec<_> = request
                .points
                .into_iter()
                .map(|point| collection.point(point))
                .collect::<Result<_, _>>()?;
            let points = PointInsertOperations::PointsList(points);
            let operation = match &request.update_filter {
                None => PointOperations::UpsertPoints(points),
                Some(filter) => {
                    PointOperations::UpsertPointsConditional(ConditionalInsertOperation {
                        points_op: points,
                        condition: engine_filter(filter)?,
                        update_mode: None,
                    })
                }
            };
            collection.update(UpdateOperation::PointOperation(operation))
        })
    }

    async fn faulty(
        &self,
        mut request: UpsertPoints,
        fault: Option<Fault>,
    ) -> Answer<PointsOperationResponse> {
        if let Some(refusal) = fault.as_ref().and_then(Fault::refusal) {
            return Err(refusal);
        }
        match fault {
            Some(Fault::Slow(pause)) => {
                tokio::time::sleep(pause).await;
                self.apply(request)?;
            }
            Some(Fault::UnknownOutcome) => {
                self.apply(request)?;
                return Err(Status::deadline_exceeded("the answer came too late"));
            }
            Some(Fault::WaitTimeout { applied }) => {
                if applied {
                    self.apply(request)?;
                }
                return done(UpdateStatus::WaitTimeout);
            }
            Some(Fault::Partial) => {
                request.points.truncate(request.points.len() / 2);
                self.apply(request)?;
                return Err(Status::internal(
                    "Service internal error: 1 of 2 shards failed",
                ));
            }
            Some(Fault::Held) => {
                request.points.truncate(request.points.len() / 2);
                self.apply(request)?;
                // Dropped with the connection.
                std::future::pending::<()>().await;
            }
            _ => self.apply(request)?,
        }
        done(UpdateStatus::Completed)
    }
}

fn search(collection: &Collection, request: QueryPoints) -> Result<Vec<ScoredPoint>, Status> {
    use qdrant::query::Variant;
    use qdrant::vector_input::Variant as Input;
    let input = match request.query.and_then(|query| query.variant) {
        Some(Variant::Nearest(input)) => input.variant,
        other => return Err(Status::unimplemented(format!("query {other:?}"))),
    };
    let Some(Input::Dense(dense)) = input else {
        return Err(Status::unimplemented("query that is no dense vector"));
    };
    let filter = request.filter.as_ref().map(engine_filter).transpose()?;
    let found = collection
        .shard
        .query(QueryRequest {
            prefetches: Vec::new(),
            query: Some(ScoringQuery::Vector(QueryEnum::Nearest(NamedQuery {
                query: VectorInternal::Dense(dense.data),
                using: Some(request.using.unwrap_or_default()),
            }))),
            filter,
            score_threshold: None,
            limit: usize::try_from(request.limit.unwrap_or(10)).unwrap_or(10),
            offset: 0,
            params: None,
            with_vector: WithVector::Bool(false),
            with_payload: WithPayloadInterface::Bool(true),
        })
        .map_err(status)?;
    Ok(found
        .into_iter()
        .map(|point| ScoredPoint {
            id: Some(grpc_id(point.id)),
            payload: grpc_payload(point.payload),
            score: point.score,
            ..ScoredPoint::default()
        })
        .collect())
}

#[tonic::async_trait]
impl Points for PointsService {
    async fn upsert(&self, request: Request<UpsertPoints>) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        if request.wait != Some(true) {
            return Err(Status::invalid_argument("a write that does not wait"));
        }
        let seen = &self.0.seen;
        seen.upsert(request.points.len(), request.encoded_len());
        let _in_flight = seen.enter();
        // Long enough for the requests of one batch to meet here.
        tokio::time::sleep(Duration::from_micros(500)).await;
        self.faulty(request, self.0.faults.draw()).await
    }

    async fn delete(&self, request: Request<DeletePoints>) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        let selector = request
            .points
            .and_then(|points| points.points_selector_one_of);
        self.0.with(&request.collection_name, |collection| {
            let operation = match selector {
                Some(PointsSelectorOneOf::Filter(filter)) => {
                    PointOperations::DeletePointsByFilter(engine_filter(&filter)?)
                }
                Some(PointsSelectorOneOf::Points(ids)) => PointOperations::DeletePoints {
                    ids: ids.ids.iter().map(engine_id).collect::<Result<_, _>>()?,
                },
                None => return Err(Status::invalid_argument("no points")),
            };
            collection.update(UpdateOperation::PointOperation(operation))
        })?;
        done(UpdateStatus::Completed)
    }

    async fn get(&self, request: Request<GetPoints>) -> Answer<GetResponse> {
        let request = request.into_inner();
        let ids: Vec<_> = request
            .ids
            .iter()
            .map(engine_id)
            .collect::<Result<_, _>>()?;
        let with_vectors = request
            .with_vectors
            .and_then(|selector| selector.selector_options)
            .is_some_and(|options| {
                matches!(
                    options,
                    with_vectors_selector::SelectorOptions::Enable(true)
                )
            });
        self.0.with(&request.collection_name, |collection| {
            let found = collection
                .shard
                .retrieve(&ids, None, Some(WithVector::Bool(with_vectors)))
                .map_err(status)?;
            let name = collection.vector_name.clone();
            let result = found
                .into_iter()
                .map(|record| RetrievedPoint {
                    id: Some(grpc_id(record.id)),
                    vectors: record
                        .get_vector_by_name(&name)
                        .map(|_| VectorsOutput::default()),
                    payload: grpc_payload(record.payload),
                    ..RetrievedPoint::default()
                })
                .collect();
            Ok(Response::new(GetResponse {
                result,
                ..GetResponse::default()
            }))
        })
    }

    async fn delete_vectors(
        &self,
        request: Request<DeletePointVectors>,
    ) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        let selector = request
            .points_selector
            .and_then(|points| points.points_selector_one_of);
        let names = request
            .vectors
            .map(|vectors| vectors.names)
            .unwrap_or_default();
        self.0
            .with(&request.collection_name, |collection| match selector {
                Some(PointsSelectorOneOf::Filter(filter)) => {
                    collection.update(UpdateOperation::VectorOperation(
                        VectorOperations::DeleteVectorsByFilter(engine_filter(&filter)?, names),
                    ))
                }
                _ => Err(Status::unimplemented("vectors of listed points")),
            })?;
        done(UpdateStatus::Completed)
    }

    async fn create_field_index(
        &self,
        request: Request<CreateFieldIndexCollection>,
    ) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        let schema = match request.field_type() {
            FieldType::Keyword => EdgeSchema::Keyword,
            FieldType::Integer => EdgeSchema::Integer,
            FieldType::Datetime => EdgeSchema::Datetime,
            FieldType::Bool => EdgeSchema::Bool,
            other => return Err(Status::unimplemented(format!("index {other:?}"))),
        };
        self.change_index(&request.collection_name, &request.field_name, Some(schema))
    }

    async fn delete_field_index(
        &self,
        request: Request<DeleteFieldIndexCollection>,
    ) -> Answer<PointsOperationResponse> {
        let request = request.into_inner();
        self.change_index(&request.collection_name, &request.field_name, None)
    }

    async fn count(&self, request: Request<CountPoints>) -> Answer<CountResponse> {
        let request = request.into_inner();
        let filter = request.filter.as_ref().map(engine_filter).transpose()?;
        self.0.with(&request.collection_name, |collection| {
            let exact = request.exact.unwrap_or(true);
            let count = collection
                .shard
                .count(CountRequest { filter, exact })
                .map_err(status)?;
            Ok(Response::new(CountResponse {
                result: Some(CountResult {
                    count: count as u64,
                }),
                ..CountResponse::default()
            }))
        })
    }

    async fn query(&self, request: Request<QueryPoints>) -> Answer<QueryResponse> {
        let request = request.into_inner();
        let name = request.collection_name.clone();
        self.0.with(&name, |collection| {
            Ok(Response::new(QueryResponse {
                result: search(collection, request)?,
                ..QueryResponse::default()
            }))
        })
    }

    refused! {
        update_vectors(UpdatePointVectors) -> PointsOperationResponse;
        set_payload(SetPayloadPoints) -> PointsOperationResponse;
        overwrite_payload(SetPayloadPoints) -> PointsOperationResponse;
        delete_payload(DeletePayloadPoints) -> PointsOperationResponse;
        clear_payload(ClearPayloadPoints) -> PointsOperationResponse;
        create_vector_name(CreateVectorNameRequest) -> PointsOperationResponse;
        delete_vector_name(DeleteVectorNameRequest) -> PointsOperationResponse;
        search(SearchPoints) -> SearchResponse;
        search_batch(SearchBatchPoints) -> SearchBatchResponse;
        search_groups(SearchPointGroups) -> SearchGroupsResponse;
        scroll(ScrollPoints) -> ScrollResponse;
        recommend(RecommendPoints) -> RecommendResponse;
        recommend_batch(RecommendBatchPoints) -> RecommendBatchResponse;
        recommend_groups(RecommendPointGroups) -> RecommendGroupsResponse;
        discover(DiscoverPoints) -> DiscoverResponse;
        discover_batch(DiscoverBatchPoints) -> DiscoverBatchResponse;
        update_batch(UpdateBatchPoints) -> UpdateBatchResponse;
        query_batch(QueryBatchPoints) -> QueryBatchResponse;
        query_groups(QueryPointGroups) -> QueryGroupsResponse;
        facet(FacetCounts) -> FacetResponse;
        search_matrix_pairs(SearchMatrixPoints) -> SearchMatrixPairsResponse;
        search_matrix_offsets(SearchMatrixPoints) -> SearchMatrixOffsetsResponse;
    }
}

impl PointsService {
    fn change_index(
        &self,
        collection: &str,
        key: &str,
        schema: Option<EdgeSchema>,
    ) -> Answer<PointsOperationResponse> {
        let field_name = key
            .parse()
            .map_err(|()| Status::invalid_argument("no payload key"))?;
        self.0.with(collection, |collection| {
            let operation = match schema {
                Some(schema) => FieldIndexOperations::CreateIndex(CreateIndex {
                    field_name,
                    field_schema: Some(PayloadFieldSchema::FieldType(schema)),
                }),
                None => FieldIndexOperations::DeleteIndex(field_name),
            };
            collection.update(UpdateOperation::FieldIndexOperation(operation))
        })?;
        done(UpdateStatus::Completed)
    }
}
