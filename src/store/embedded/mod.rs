//! The embedded store: Qdrant's engine inside this process. This file owns the thread that owns the
//! engine and the channel to it; `engine` does the work, `folder` knows what lies where on disk.
//!
//! Group commit: the thread takes the writes that wait, applies each, flushes once and answers all.
//! A write is answered only after a flush that did not fail.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::JoinHandle;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use crate::document::{DocumentId, LatestTime};
use crate::store::{
    Admin, CollectionInfo, CollectionSpec, IndexKind, PointFilter, PointWrite, SearchHit, Store,
    StoreError, StoreSettings, WriteOutcome,
};

mod collection;
mod convert;
mod engine;
mod folder;
mod log;

use convert::ENGINE_FAILED;
use engine::Engine;

/// Commands that may wait for the thread; each caller waits for its answer, so that memory is
/// bounded by what the callers have in flight.
const WAITING_COMMANDS: usize = 64;
/// Writes that share one flush, at most.
const GROUP_WRITES: usize = 32;
/// Points that share one flush, about: it bounds how long the first of a group waits.
const GROUP_POINTS: usize = 4096;

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;
/// Anything but a write: runs on the thread and answers for itself.
type Job = Box<dyn FnOnce(&mut Engine) + Send>;

enum Command {
    Write(Vec<PointWrite>, LatestTime, Answer<WriteOutcome>),
    Job(Job),
    Close(Answer<()>),
}

/// Qdrant's engine in process, behind its thread.
pub struct EmbeddedStore {
    commands: mpsc::Sender<Command>,
    folder: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedStore {
    /// Opens the folder that `settings` name and starts the thread. The collection need not exist.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] where another process has the folder, or it cannot be read.
    pub async fn open(settings: &StoreSettings) -> Result<Self, StoreError> {
        let (commands, inbox) = mpsc::channel(WAITING_COMMANDS);
        let (opened, wait) = oneshot::channel();
        let settings = settings.clone();
        let folder = settings.path.clone();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || match Engine::open(&settings) {
                Err(error) => drop(opened.send(Err(error))),
                Ok(engine) => {
                    if opened.send(Ok(())).is_ok() {
                        serve(engine, inbox);
                    }
                }
            })
            .map_err(|error| StoreError::Fatal(format!("cannot start a thread: {error}")))?;
        wait.await.unwrap_or_else(|_| Err(gone()))?;
        Ok(Self {
            commands,
            folder,
            thread: Mutex::new(Some(thread)),
        })
    }

    async fn ask<T, F>(&self, question: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Engine) -> Result<T, StoreError> + Send + 'static,
    {
        let (answer, wait) = oneshot::channel();
        let job = Box::new(move |engine: &mut Engine| {
            // Whoever asked may have left; nothing depends on the answer then.
            let _ = answer.send(question(engine));
        });
        self.send(Command::Job(job)).await?;
        self.answer(wait).await
    }

    /// Waits for an answer; a failure of the engine gets the folder and what to do with it.
    async fn answer<T>(
        &self,
        wait: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match wait.await.unwrap_or_else(|_| Err(gone())) {
            Err(StoreError::Fatal(reason)) if reason.starts_with(ENGINE_FAILED) => {
                Err(StoreError::Fatal(format!(
                    "{reason}; if the folder {} (store.path) is damaged, move it away and run a \
                     backfill",
                    self.folder.display()
                )))
            }
            answer => answer,
        }
    }

    async fn send(&self, command: Command) -> Result<(), StoreError> {
        self.commands.send(command).await.map_err(|_| gone())
    }
}

fn gone() -> StoreError {
    StoreError::Fatal("the embedded store has been closed".into())
}

/// Runs on the store's thread until it is told to close or nobody is left to ask.
fn serve(mut engine: Engine, mut inbox: mpsc::Receiver<Command>) {
    let mut next = inbox.blocking_recv();
    while let Some(command) = next.take() {
        match command {
            Command::Write(batch, latest, answer) => {
                let points = batch.len();
                let applied = (engine.apply(batch, latest), answer);
                next = write_group(&mut engine, &mut inbox, points, applied);
                engine.maintain();
            }
            Command::Job(job) => job(&mut engine),
            Command::Close(answer) => {
                let _ = answer.send(engine.close());
                return;
            }
        }
        if next.is_none() {
            next = inbox.blocking_recv();
        }
    }
    if let Err(error) = engine.close() {
        tracing::warn!(%error, "the embedded store did not close cleanly");
    }
}

/// Applies the writes that wait beside the `applied` one of so many points, flushes once, answers all;
/// gives back the command that ended the group.
fn write_group(
    engine: &mut Engine,
    inbox: &mut mpsc::Receiver<Command>,
    mut points: usize,
    applied: (Result<WriteOutcome, StoreError>, Answer<WriteOutcome>),
) -> Option<Command> {
    let mut applied = vec![applied];
    let mut after = None;
    while applied.len() < GROUP_WRITES && points < GROUP_POINTS {
        match inbox.try_recv() {
            Ok(Command::Write(batch, latest, answer)) => {
                points += batch.len();
                applied.push((engine.apply(batch, latest), answer));
            }
            Ok(other) => {
                after = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    let flushed = engine.flush();
    for (result, answer) in applied {
        let result = match (result, flushed.clone()) {
            (Err(applying), Err(flushing)) => Err(applying.graver(flushing)),
            (result, flushed) => flushed.and(result),
        };
        let _ = answer.send(result);
    }
    after
}

impl Store for EmbeddedStore {
    fn write(
        &self,
        batch: Vec<PointWrite>,
        latest: LatestTime,
    ) -> BoxFuture<'_, Result<WriteOutcome, StoreError>> {
        Box::pin(async move {
            if batch.is_empty() {
                return Ok(WriteOutcome::default());
            }
            let (answer, wait) = oneshot::channel();
            self.send(Command::Write(batch, latest, answer)).await?;
            self.answer(wait).await
        })
    }

    fn search(
        &self,
        vector: Vec<f32>,
        filter: PointFilter,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<SearchHit>, StoreError>> {
        Box::pin(self.ask(move |engine| engine.search(vector, &filter, limit)))
    }

    fn count(&self, filter: PointFilter) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.ask(move |engine| engine.count(&filter)))
    }

    fn fetch(
        &self,
        id: DocumentId,
    ) -> BoxFuture<'_, Result<Option<Map<String, Value>>, StoreError>> {
        Box::pin(self.ask(move |engine| engine.fetch(&id)))
    }

    fn collection(&self) -> BoxFuture<'_, Result<Option<CollectionInfo>, StoreError>> {
        Box::pin(self.ask(Engine::describe))
    }

    fn remove_markers(&self, before: jiff::Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.ask(move |engine| engine.remove_markers(before)))
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let (answer, wait) = oneshot::channel();
            if self.send(Command::Close(answer)).await.is_err() {
                return Ok(());
            }
            let closed = wait.await.unwrap_or(Ok(()));
            // The thread has answered its last command: joining it is a matter of microseconds.
            if let Some(thread) = self.thread.lock().take()
                && thread.join().is_err()
            {
                return Err(StoreError::Fatal("the store's thread panicked".into()));
            }
            closed
        })
    }
}

impl Admin for EmbeddedStore {
    fn create_collection(
        &self,
        spec: CollectionSpec,
        metadata: BTreeMap<String, Value>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        // Nobody else has the folder, so nobody sees what lies between the two.
        Box::pin(self.ask(move |engine| {
            engine.create(&spec)?;
            engine.write_metadata(metadata)
        }))
    }

    fn drop_collection(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(Engine::remove))
    }

    fn create_index(&self, key: String, kind: IndexKind) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |engine| engine.create_index(&key, kind)))
    }

    fn drop_index(&self, key: String) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |engine| engine.drop_index(&key)))
    }

    fn graph_threshold(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.ask(|engine| engine.graph_threshold()))
    }

    fn set_graph_threshold(&self, kilobytes: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |engine| engine.set_graph_threshold(kilobytes)))
    }

    fn write_metadata(
        &self,
        metadata: BTreeMap<String, Value>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |engine| engine.write_metadata(metadata)))
    }

    fn alias(&self, alias: String) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        Box::pin(self.ask(move |engine| engine.alias(&alias)))
    }

    fn set_alias(
        &self,
        alias: String,
        collection: Option<String>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |engine| engine.set_alias(&alias, collection)))
    }
}
