//! The conditional write over gRPC: one request for the points, one that takes the vectors of markers
//! away where there are any, one that asks what was superseded.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use qdrant_client::QdrantError;
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::{
    DeletePointVectorsBuilder, GetPointsBuilder, PayloadIncludeSelector, PointId, UpsertPoints,
};
use uuid::Uuid;

use super::error::{completed, is_not_found};
use super::{QdrantStore, Vector, closed, condition, convert};
use crate::document::{LatestTime, Version};
use crate::store::batch::{prepare, split};
use crate::store::{PointWrite, StoreError, WriteOutcome, version};

/// How long a look at the collection serves.
const FITS_FOR: Duration = Duration::from_secs(1);

/// How often it is looked for a collection that a server does not know.
const ABSENCE_LOOKS: u32 = 5;
const ABSENCE_PAUSE: Duration = Duration::from_secs(1);

/// What is kept of a write that was sent.
struct Written {
    id: Uuid,
    version: Version,
    /// What it counts as, if it lost.
    outcome: WriteOutcome,
}

impl QdrantStore {
    pub(super) async fn write_batch(
        &self,
        batch: Vec<PointWrite>,
        latest: LatestTime,
    ) -> Result<WriteOutcome, StoreError> {
        if batch.is_empty() {
            return Ok(WriteOutcome::default());
        }
        let vector = self.vector().await?;
        batch.iter().try_for_each(convert::check_nesting)?;
        let mut reduced = prepare(batch, vector.size)?;
        let requests = split(
            std::mem::take(&mut reduced.writes),
            self.settings.batch_points(),
            self.settings.max_batch_bytes,
        );
        let answers = join_all(requests.into_iter().map(|request| {
            let written = request.iter().map(|write| Written {
                id: write.id().point_id(),
                version: write.version().clone(),
                outcome: reduced.if_superseded(write),
            });
            let written = written.collect();
            self.send(request, written, latest, vector)
        }))
        .await;
        let mut outcome = reduced.outcome;
        let mut failed = None::<StoreError>;
        for answer in answers {
            match answer {
                Ok(superseded) => outcome += superseded,
                Err(error) => {
                    failed = Some(match failed {
                        Some(before) => before.graver(error),
                        None => error,
                    });
                }
            }
        }
        match failed {
            None => Ok(outcome),
            Some(StoreError::Rejected(reason)) => Err(self.explain_rejection(vector, reason).await),
            Some(error) => Err(error),
        }
    }

    async fn send(
        &self,
        batch: Vec<PointWrite>,
        written: Vec<Written>,
        latest: LatestTime,
        vector: &Vector,
    ) -> Result<WriteOutcome, StoreError> {
        let _permit = self.in_flight.acquire().await.map_err(|_| closed())?;
        let batch: Vec<_> = batch
            .into_iter()
            .map(|write| (condition::point_id(&write), write))
            .collect();
        let emptied: Vec<_> = batch
            .iter()
            .filter(|(_, write)| write.is_tombstone())
            .map(|(id, _)| id.clone())
            .collect();
        let request = UpsertPoints {
            collection_name: self.collection_name().to_owned(),
            wait: Some(true),
            update_filter: Some(condition::not_newer(&batch, latest)),
            points: batch
                .into_iter()
                .map(|(id, write)| convert::point(id, write, &vector.name))
                .collect(),
            ..UpsertPoints::default()
        };
        match self.client.upsert_points(request).await {
            Ok(response) => completed(&response)?,
            Err(error) if is_not_found(&error) => return Err(self.explain_absence(error).await),
            Err(error) => return Err(self.failed(error)),
        }
        if !emptied.is_empty() {
            self.empty_markers(emptied, vector).await?;
        }
        Ok(self.superseded(&written, latest).await)
    }

    /// Where the server moves a point out of a finished segment it keeps vectors that the new point
    /// lacks; a marker shall not carry the vector of what was deleted.
    async fn empty_markers(&self, ids: Vec<PointId>, vector: &Vector) -> Result<(), StoreError> {
        let request = DeletePointVectorsBuilder::new(self.collection_name())
            .wait(true)
            .points_selector(PointsSelectorOneOf::Filter(condition::markers_among(ids)))
            .vectors(vec![vector.name.clone()]);
        let answer = self.client.delete_vectors(request).await;
        completed(&answer.map_err(|error| self.failed(error))?)
    }

    /// Which of these writes lost, by what is stored now: one request, for a count. The server does not
    /// say what a conditional write left out. Where it cannot be asked nothing counts as superseded: what
    /// was written is durable all the same.
    async fn superseded(&self, written: &[Written], latest: LatestTime) -> WriteOutcome {
        let ids: Vec<PointId> = written
            .iter()
            .map(|write| write.id.to_string().into())
            .collect();
        let request = GetPointsBuilder::new(self.collection_name(), ids)
            .with_payload(PayloadIncludeSelector::new(
                version::KEYS.map(str::to_owned).to_vec(),
            ))
            .with_vectors(false);
        let found = match self.client.get_points(request).await {
            Ok(response) => response.result,
            Err(error) => {
                let error = self.failed(error);
                tracing::debug!(%error, "could not ask the store which writes were superseded");
                return WriteOutcome::default();
            }
        };
        let stored: HashMap<Uuid, Version> = found
            .into_iter()
            .filter_map(|point| {
                let version = version::read_version(&convert::json(point.payload))?;
                Some((convert::uuid(point.id), version))
            })
            .collect();
        let mut outcome = WriteOutcome::default();
        for write in written {
            if !version::may_replace(stored.get(&write.id), &write.version, latest) {
                outcome += write.outcome;
            }
        }
        outcome
    }

    /// A peer that has just joined its cluster does not know the collection yet; one that was removed
    /// stays away.
    async fn explain_absence(&self, error: QdrantError) -> StoreError {
        let error = self.failed(error);
        for _ in 0..ABSENCE_LOOKS {
            tokio::time::sleep(ABSENCE_PAUSE).await;
            match self.describe().await {
                Ok(Some(_)) => return StoreError::Transient(error.to_string()),
                Ok(None) | Err(StoreError::Fatal(_)) => {}
                Err(other) => return other,
            }
        }
        error
    }

    /// A refusal may be the collection's fault, not the batch's: then no document may be
    /// dead-lettered for it.
    async fn explain_rejection(&self, vector: &Vector, reason: String) -> StoreError {
        // A batch that is bisected is rejected often within a moment.
        if self.fits.lock().is_some_and(|at| at.elapsed() < FITS_FOR) {
            return StoreError::Rejected(reason);
        }
        match self.describe().await {
            Err(error) => error,
            Ok(Some(now)) if now.vector_name == vector.name && now.vector_size == vector.size => {
                *self.fits.lock() = Some(Instant::now());
                StoreError::Rejected(reason)
            }
            Ok(_) => StoreError::Fatal(format!(
                "the collection {:?} has been replaced by one with other vectors ({reason}); start \
                 the worker again",
                self.collection_name()
            )),
        }
    }
}
