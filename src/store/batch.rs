//! What happens to a batch before it is sent: checked, reduced to the newest write of each document,
//! cut into requests. Pure.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::document::DocumentId;
use crate::store::{PointWrite, StoreError, WriteOutcome};

/// Bytes assumed for what a request holds for each point besides vector and payload: id, condition,
/// framing.
const POINT_OVERHEAD_BYTES: usize = 512;

/// A batch of which each document stands once.
#[derive(Debug, Default)]
pub struct Reduced {
    /// The newest write of each document.
    pub writes: Vec<PointWrite>,
    /// What was superseded within the batch.
    pub outcome: WriteOutcome,
    /// Further writes of the same version that were left out, where there were any: they share the fate
    /// of the one that is kept.
    equal: HashMap<DocumentId, usize>,
}

impl Reduced {
    /// How many records of the batch a kept write stands for.
    pub fn records_of(&self, write: &PointWrite) -> usize {
        1 + self.equal.get(write.id()).copied().unwrap_or_default()
    }

    /// What a kept write counts as where the store holds a newer version.
    pub fn if_superseded(&self, write: &PointWrite) -> WriteOutcome {
        let mut outcome = WriteOutcome::default();
        outcome.add_superseded(write, self.records_of(write));
        outcome
    }
}

/// Checks every vector and keeps the newest write of each document.
///
/// # Errors
/// [`StoreError::Rejected`] where a vector has another width than `vector_size`, which is hardly the
/// document's fault; [`StoreError::Unstorable`] where it holds a number that is not finite.
pub fn prepare(batch: Vec<PointWrite>, vector_size: usize) -> Result<Reduced, StoreError> {
    for write in &batch {
        check(write, vector_size)?;
    }
    Ok(newest_per_document(batch))
}

fn check(write: &PointWrite, vector_size: usize) -> Result<(), StoreError> {
    let PointWrite::Upsert(point) = write else {
        return Ok(());
    };
    if point.vector.len() != vector_size {
        return Err(StoreError::Rejected(format!(
            "document {}: its vector has {} numbers, the collection takes {vector_size}",
            point.id,
            point.vector.len()
        )));
    }
    match point.vector.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(StoreError::Unstorable(format!(
            "document {}: number {at} of its vector is not finite",
            point.id
        ))),
    }
}

/// The newest write of each document, in the order in which documents first appear. The result,
/// written at once, leaves what the batch would leave if it were written one by one.
pub fn newest_per_document(batch: Vec<PointWrite>) -> Reduced {
    // Nearly always: then nothing has to be copied or moved.
    let distinct: HashSet<&str> = batch.iter().map(|write| write.id().as_str()).collect();
    if distinct.len() == batch.len() {
        return Reduced {
            writes: batch,
            ..Reduced::default()
        };
    }
    let mut places: HashMap<DocumentId, usize> = HashMap::with_capacity(batch.len());
    let mut reduced = Reduced::default();
    let Reduced {
        writes,
        outcome,
        equal,
    } = &mut reduced;
    for write in batch {
        let place = *places.entry(write.id().clone()).or_insert(writes.len());
        let Some(kept) = writes.get_mut(place) else {
            writes.push(write);
            continue;
        };
        match write.version().compare(kept.version()) {
            Ordering::Less => outcome.add_superseded(&write, 1),
            Ordering::Equal => {
                *equal.entry(write.id().clone()).or_default() += 1;
                *kept = write;
            }
            Ordering::Greater => {
                let records = 1 + equal.remove(write.id()).unwrap_or_default();
                outcome.add_superseded(kept, records);
                *kept = write;
            }
        }
    }
    reduced
}

/// Cuts a batch into requests of at most `max_points` points and about `max_bytes` bytes; a point
/// that is larger than that stands alone.
pub fn split(batch: Vec<PointWrite>, max_points: usize, max_bytes: usize) -> Vec<Vec<PointWrite>> {
    let mut requests = Vec::new();
    let mut request: Vec<PointWrite> = Vec::new();
    let mut bytes = 0;
    for write in batch {
        let size = estimated_bytes(&write);
        let full = request.len() >= max_points || bytes + size > max_bytes;
        if full && !request.is_empty() {
            requests.push(std::mem::take(&mut request));
            bytes = 0;
        }
        bytes += size;
        request.push(write);
    }
    if !request.is_empty() {
        requests.push(request);
    }
    requests
}

/// About how many bytes a write takes in a request.
pub fn estimated_bytes(write: &PointWrite) -> usize {
    POINT_OVERHEAD_BYTES
        + match write {
            PointWrite::Tombstone { id, .. } => id.as_str().len(),
            PointWrite::Upsert(point) => {
                size_of::<f32>() * point.vector.len() + object_bytes(&point.payload)
            }
        }
}

fn object_bytes(object: &Map<String, Value>) -> usize {
    object
        .iter()
        .map(|(key, value)| key.len() + value_bytes(value) + 8)
        .sum()
}

/// Recursion ends: a payload is no deeper than decoding allows.
fn value_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 10,
        Value::String(text) => text.len() + 6,
        Value::Array(values) => values.iter().map(|value| value_bytes(value) + 4).sum(),
        Value::Object(object) => object_bytes(object),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::document::{RecordPosition, TopicPartition, Version};
    use crate::store::Point;

    fn upsert(id: &str, partition: i32, offset: i64, timestamp_ms: i64) -> PointWrite {
        PointWrite::Upsert(Point {
            id: DocumentId::new(id).unwrap(),
            version: Version {
                position: RecordPosition {
                    partition: TopicPartition::new("news", partition),
                    offset,
                },
                timestamp_ms,
                order: i64::from(partition),
            },
            vector: vec![1.0, 0.0],
            payload: Map::new(),
        })
    }

    #[test]
    fn a_vector_that_does_not_fit_is_named() {
        let error = prepare(vec![upsert("n-7", 0, 0, 0)], 3).unwrap_err();
        assert!(matches!(&error, StoreError::Rejected(reason) if reason.contains("n-7")));
        let mut write = upsert("n-8", 0, 0, 0);
        if let PointWrite::Upsert(point) = &mut write {
            point.vector[1] = f32::NAN;
        }
        assert!(matches!(
            prepare(vec![write], 2),
            Err(StoreError::Unstorable(_))
        ));
    }

    #[test]
    fn an_equal_version_rewrites() {
        let mut second = upsert("a", 0, 5, 1);
        if let PointWrite::Upsert(point) = &mut second {
            point.vector = vec![0.0, 1.0];
        }
        let reduced = newest_per_document(vec![upsert("a", 0, 5, 1), second.clone()]);
        assert_eq!(reduced.outcome, WriteOutcome::default());
        assert_eq!(reduced.records_of(&second), 2);
        assert_eq!(reduced.writes, vec![second]);
    }

    #[test]
    fn what_loses_within_a_batch_is_counted() {
        let deletion = PointWrite::Tombstone {
            id: DocumentId::new("a").unwrap(),
            version: upsert("a", 0, 6, 1).version().clone(),
            deleted_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let newest = upsert("a", 0, 7, 1);
        let reduced = newest_per_document(vec![
            upsert("a", 0, 5, 1),
            upsert("a", 0, 5, 1),
            deletion,
            newest.clone(),
            upsert("a", 0, 4, 1),
            upsert("b", 0, 1, 1),
        ]);
        let expected = WriteOutcome {
            superseded_documents: 3,
            superseded_deletions: 1,
        };
        assert_eq!(reduced.outcome, expected);
        assert_eq!(reduced.writes.len(), 2);
        assert_eq!(reduced.records_of(&newest), 1);
    }

    #[test]
    fn a_point_larger_than_a_request_stands_alone() {
        let mut large = upsert("large", 0, 0, 0);
        if let PointWrite::Upsert(point) = &mut large {
            point
                .payload
                .insert("text".into(), "字".repeat(5000).into());
        }
        let batch = vec![upsert("a", 0, 0, 0), large, upsert("b", 0, 0, 0)];
        let sizes: Vec<usize> = split(batch, 100, 2000).iter().map(Vec::len).collect();
        assert_eq!(sizes, vec![1, 1, 1]);
    }

    fn writes() -> impl Strategy<Value = Vec<PointWrite>> {
        let write = ("[a-d]", 0..3i32, 0..20i64, 0..20i64)
            .prop_map(|(id, partition, offset, at)| upsert(&id, partition, offset, at));
        proptest::collection::vec(write, 0..40)
    }

    proptest! {
        #[test]
        fn a_batch_leaves_what_its_writes_leave_one_by_one(batch in writes()) {
            let mut one_by_one: BTreeMap<DocumentId, PointWrite> = BTreeMap::new();
            for write in &batch {
                let older = one_by_one.get(write.id())
                    .is_some_and(|kept| write.version().compare(kept.version()) == Ordering::Less);
                if !older {
                    one_by_one.insert(write.id().clone(), write.clone());
                }
            }
            let records = batch.len();
            let reduced = newest_per_document(batch);
            let kept: usize = reduced.writes.iter().map(|write| reduced.records_of(write)).sum();
            prop_assert_eq!(kept + reduced.outcome.superseded_documents, records);
            let at_once: BTreeMap<DocumentId, PointWrite> = reduced.writes
                .into_iter().map(|write| (write.id().clone(), write)).collect();
            prop_assert_eq!(at_once, one_by_one);
        }

        #[test]
        fn splitting_loses_nothing_and_keeps_the_bounds(batch in writes(), points in 1..10usize, bytes in 1..5000usize) {
            let requests = split(batch.clone(), points, bytes);
            for request in &requests {
                prop_assert!(request.len() <= points);
                let size: usize = request.iter().map(estimated_bytes).sum();
                prop_assert!(size <= bytes || request.len() == 1);
            }
            prop_assert_eq!(requests.concat(), batch);
        }
    }
}
