//! A store that does not hold what a group or job has committed: its folder was removed, the collection
//! was dropped or another one is named. The worker would make an empty one and continue at the committed
//! offsets, and everything before them would be missing in silence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cli::terminal::failure::Failure;
use crate::kafka::{
    GroupPosition, KafkaSettings, RangeProgress, certain_group_positions, oldest_offsets,
};
use crate::settings::Settings;
use crate::store::groups::{self, FilledTo, Standing, Writer};
use crate::store::{Store, StoreError, StoreKind, StoreSettings};

/// How often the list is read again before a writer is rejected: in a cluster of servers what another
/// worker has written arrives a little later at some.
const LOOKS: u32 = 3;
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// How often a worker looks whether the collection is still the one that it started with.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// How many looks in a row must find another one.
const WATCH_LOOKS: u32 = 2;

/// What a writer has committed that the store must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Committed {
    /// Nothing.
    Nothing,
    /// Something; a backfill does not make up for it.
    Something,
    /// These offsets.
    Offsets(Vec<GroupPosition>),
}

impl Committed {
    /// What a group has committed. An offset of 0 stands for nothing.
    fn of_group(mut positions: Vec<GroupPosition>) -> Self {
        positions.retain(|position| position.committed.is_some_and(|offset| offset > 0));
        if positions.is_empty() {
            Self::Nothing
        } else {
            Self::Offsets(positions)
        }
    }

    fn is_filled(&self, filled: &FilledTo) -> bool {
        match self {
            Self::Nothing => true,
            Self::Something => false,
            Self::Offsets(positions) => positions.iter().all(|position| {
                let filled = filled.get(&position.partition).copied();
                position.committed <= filled
            }),
        }
    }
}

/// A writer that wants to work on a store.
pub(in crate::cli) struct Claim {
    pub(in crate::cli) writer: Writer,
    /// The sentence of the error that names the writer and what it relies on.
    pub(in crate::cli) relies_on: String,
    /// The ways to continue, for the error.
    pub(in crate::cli) remedy: String,
    /// Whether the operator has said that the store may lack what was committed.
    pub(in crate::cli) accepts: bool,
}

impl Claim {
    /// The live group's.
    pub(in crate::cli) fn of_group(kafka: &KafkaSettings, accepts: bool) -> Self {
        Self {
            writer: Writer::Group(kafka.group_id.clone()),
            relies_on: format!(
                "the group {:?} has committed offsets of {}",
                kafka.group_id, kafka.topic
            ),
            remedy: "to bring it back, read the topics again with `tcbert-worker backfill --from 1970-01-01`, \
                     after which `tcbert-worker run` continues; to continue without it, start \
                     `tcbert-worker run --accept-empty-store` once"
                .to_owned(),
            accepts,
        }
    }

    /// A job's that continues.
    pub(in crate::cli) fn of_job(id: String, name: &str, accepts: bool) -> Self {
        Self {
            writer: Writer::Job(id),
            relies_on: format!("the backfill {name:?} has done a part of its work before"),
            remedy: "to do all of it, give it another name with --job; to continue without that part, start the \
                     same `tcbert-worker backfill` with --accept-empty-store"
                .to_owned(),
            accepts,
        }
    }

    /// Says why the store is rejected, `None` where it is not. Changes nothing. `committed` is asked only
    /// where the store does not list the writer.
    ///
    /// # Errors
    /// A store or broker that fails.
    pub(in crate::cli) async fn objection(
        &self,
        store: &dyn Store,
        settings: &StoreSettings,
        committed: impl AsyncFn() -> Result<Committed, Failure>,
    ) -> Result<Option<String>, Failure> {
        match self.standing(store).await? {
            Standing::Listed => return Ok(None),
            Standing::NoList { points } if points > 0 => {
                tracing::info!(
                    points,
                    "the collection was filled by an earlier version; from now on it lists who writes into it"
                );
                return Ok(None);
            }
            Standing::NoCollection
            | Standing::NoList { .. }
            | Standing::Absent
            | Standing::Filled(_) => {}
        }
        // Asked after the list, and the list is read again after: a worker of the same group may have
        // registered and committed in between.
        let committed = committed().await?;
        if committed == Committed::Nothing {
            return Ok(None);
        }
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            match self.standing(store).await? {
                Standing::Listed => return Ok(None),
                Standing::Filled(filled) if committed.is_filled(&filled) => return Ok(None),
                Standing::NoCollection
                | Standing::NoList { .. }
                | Standing::Absent
                | Standing::Filled(_) => {}
            }
        }
        Ok(Some(format!(
            "{}, but {} does not list it among those that have written there: the store was removed, emptied or \
             replaced, or another one is named. What was committed before is missing in it; {}",
            self.relies_on,
            place(settings),
            self.remedy
        )))
    }

    async fn standing(&self, store: &dyn Store) -> Result<Standing, Failure> {
        groups::standing(store, &self.writer)
            .await
            .map_err(Failure::failed)
    }

    /// Rejects a store as [`objection`](Self::objection) says, unless the operator accepts it. To be
    /// called before the collection is created: an empty one that exists would be taken by those who
    /// still write into the lost one.
    ///
    /// # Errors
    /// The objection, or a store or broker that fails.
    pub(in crate::cli) async fn check(
        &self,
        store: &dyn Store,
        settings: &StoreSettings,
        committed: impl AsyncFn() -> Result<Committed, Failure>,
    ) -> Result<(), Failure> {
        if self.accepts {
            return Ok(());
        }
        match self.objection(store, settings, committed).await? {
            None => Ok(()),
            Some(objection) => Err(Failure::failed(objection)),
        }
    }

    /// Lists the writer in the collection; to be called before anything of it is committed.
    ///
    /// # Errors
    /// A store that fails.
    pub(in crate::cli) async fn register(
        &self,
        store: &Arc<dyn Store>,
    ) -> Result<Registered, Failure> {
        let list = groups::register(&**store, &self.writer, jiff::Timestamp::now()).await;
        self.registered(store, list)
    }

    /// As [`register`](Self::register), for a job of which it is known whether the collection holds all
    /// that it has done.
    ///
    /// # Errors
    /// A store that fails.
    pub(in crate::cli) async fn register_job(
        &self,
        store: &Arc<dyn Store>,
        whole: bool,
    ) -> Result<Registered, Failure> {
        let now = jiff::Timestamp::now();
        let list = groups::register_job(&**store, &self.writer, now, whole).await;
        self.registered(store, list)
    }

    fn registered(
        &self,
        store: &Arc<dyn Store>,
        list: Result<String, StoreError>,
    ) -> Result<Registered, Failure> {
        Ok(Registered {
            store: store.clone(),
            writer: self.writer.clone(),
            list: list.map_err(Failure::failed)?,
            lost: Arc::default(),
        })
    }
}

/// Where the store is, in the words of the settings.
fn place(settings: &StoreSettings) -> String {
    let collection = &settings.collection;
    match settings.kind {
        StoreKind::Embedded => format!(
            "the collection {collection:?} (store.collection) in {} (store.path)",
            settings.path.display()
        ),
        StoreKind::Qdrant => format!(
            "the collection {collection:?} (store.collection) at {} (store.url)",
            settings.url
        ),
    }
}

/// What the live group has committed.
///
/// # Errors
/// Brokers that do not say it.
pub(in crate::cli) async fn committed_by_group(
    kafka: &KafkaSettings,
) -> Result<Committed, Failure> {
    let kafka = kafka.clone();
    let positions = tokio::task::spawn_blocking(move || certain_group_positions(&kafka))
        .await
        .map_err(Failure::failed)?
        .map_err(Failure::failed)?;
    Ok(Committed::of_group(positions))
}

/// A writer that the collection lists.
#[derive(Clone)]
pub(in crate::cli) struct Registered {
    store: Arc<dyn Store>,
    writer: Writer,
    /// The list that it is in.
    list: String,
    lost: Arc<Mutex<Option<String>>>,
}

impl Registered {
    /// Cancels `stop` where the collection is replaced while the worker runs. Never returns otherwise.
    pub(in crate::cli) async fn watch(self, stop: CancellationToken) {
        let mut looks = 0;
        while looks < WATCH_LOOKS {
            tokio::time::sleep(WATCH_EVERY).await;
            match groups::list_id(&*self.store).await {
                Ok(list) if list.as_ref() == Some(&self.list) => looks = 0,
                Ok(_) => looks += 1,
                Err(error) => {
                    tracing::debug!(%error, "whether the collection is still there is not known");
                }
            }
        }
        *self.lost.lock() = Some(
            "the collection was removed or replaced while the worker wrote into it, and what was committed \
             before is missing there; start the worker again, it says how to continue"
                .to_owned(),
        );
        stop.cancel();
    }

    /// Whether a job was told to continue without what it had done: it has not filled the collection. Where
    /// the store does not say it, that is assumed.
    pub(in crate::cli) async fn lacks_a_part(&self) -> bool {
        let lacks = groups::lacks_a_part(&*self.store, &self.writer).await;
        lacks.unwrap_or(true)
    }

    /// Why the worker was stopped, where the watch did it.
    pub(in crate::cli) fn lost(&self) -> Result<(), Failure> {
        match self.lost.lock().take() {
            None => Ok(()),
            Some(reason) => Err(Failure::failed(reason)),
        }
    }
}

/// Notes in the collection that a finished backfill over topics has filled it for the live group, as far
/// as it began at the oldest records. A failure is logged: the operator then has to accept the store.
pub(in crate::cli) async fn note_filled(
    settings: &Settings,
    store: &dyn Store,
    progress: &RangeProgress,
) {
    let read: BTreeMap<_, _> = progress
        .positions
        .iter()
        .filter(|position| position.span.offsets() > 0)
        .map(|position| {
            let span = (position.span.begin, position.span.end);
            (position.partition.clone(), span)
        })
        .collect();
    let (kafka, partitions) = (
        settings.kafka.clone(),
        read.keys().cloned().collect::<Vec<_>>(),
    );
    if partitions.is_empty() {
        return;
    }
    let oldest = tokio::task::spawn_blocking(move || oldest_offsets(&kafka, &partitions))
        .await
        .map_err(|error| error.to_string())
        .and_then(|oldest| oldest.map_err(|error| error.to_string()));
    let noted = match oldest {
        Ok(oldest) => {
            let (group, now) = (&settings.kafka.group_id, jiff::Timestamp::now());
            let noted = groups::note_filled(store, group, &read, &oldest, now).await;
            noted.map_err(|error| error.to_string())
        }
        Err(error) => Err(error),
    };
    match noted {
        Ok(filled) => tracing::debug!(?filled, "filled for the live group"),
        Err(error) => {
            tracing::warn!(%error, "that the collection is filled for the live group could not be noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::TopicPartition;
    use crate::store::CollectionSpec;

    fn position(partition: i32, committed: Option<i64>) -> GroupPosition {
        GroupPosition {
            partition: TopicPartition::new("news", partition),
            committed,
        }
    }

    #[test]
    fn a_group_at_zero_has_committed_nothing() {
        let none = vec![position(0, None), position(1, Some(0))];
        assert_eq!(Committed::of_group(none), Committed::Nothing);
    }

    #[test]
    fn a_filled_store_has_every_committed_offset() {
        let positions = vec![
            position(0, Some(10)),
            position(1, None),
            position(2, Some(4)),
        ];
        let committed = Committed::of_group(positions);
        let filled = |offsets: &[(i32, i64)]| -> FilledTo {
            let entry =
                |(number, offset): &(i32, i64)| (TopicPartition::new("news", *number), *offset);
            offsets.iter().map(entry).collect()
        };
        assert!(committed.is_filled(&filled(&[(0, 10), (2, 5)])));
        assert!(!committed.is_filled(&filled(&[(0, 9), (2, 5)])));
        assert!(!committed.is_filled(&filled(&[(0, 10)])));
        assert!(!Committed::Something.is_filled(&filled(&[(0, 10)])));
    }

    /// Of two workers of a new group that start together, one may ask for the list before the other one
    /// has registered, and for the commits after its first one.
    #[tokio::test]
    async fn a_group_that_registers_and_commits_in_between_is_no_lost_store() {
        let folder = tempfile::tempdir().unwrap();
        let settings = StoreSettings {
            kind: StoreKind::Embedded,
            path: folder.path().to_owned(),
            ..StoreSettings::default()
        };
        let store = crate::store::connect(&settings).await.unwrap();
        let spec = CollectionSpec {
            vector_name: "test".into(),
            vector_size: 4,
        };
        let admin = store.admin();
        admin
            .create_collection(spec, BTreeMap::new())
            .await
            .unwrap();
        let claim = Claim::of_group(&KafkaSettings::default(), false);
        let some = || Committed::of_group(vec![position(0, Some(3))]);
        let objection = async |registers: bool| {
            let committed = async || {
                if registers {
                    claim.register(&store).await?;
                }
                Ok(some())
            };
            claim
                .objection(&*store, &settings, committed)
                .await
                .unwrap()
        };
        let lost = objection(false).await.unwrap();
        assert!(lost.contains("--accept-empty-store"), "{lost}");
        assert_eq!(objection(true).await, None);
        store.close().await.unwrap();
    }
}
