//! What the demo found: gathered from the store, compared with what was expected, shown as tables.

use serde::Serialize;
use serde_json::Value;

use super::samples::{self, DEAD_LETTER_TOPIC, Expectation};
use crate::assemble::Engine;
use crate::cli::search::{hits_table, nearest};
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::kafka::StoredDeadLetter;
use crate::store::{PointFilter, SearchHit, Store};

/// Searches whose hits are shown.
const SHOWN_SEARCHES: usize = 3;

/// Hits of a shown search.
const SHOWN_HITS: usize = 3;

/// Documents shown in the table.
const SHOWN_DOCUMENTS: usize = 12;

/// Characters of a title in the table.
const TITLE_CHARACTERS: usize = 32;

/// The numbers of the demo, the object that `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// Records produced.
    pub(super) produced: u64,
    /// Documents that went through the model.
    pub(super) tagged: u64,
    /// Writes durable in the store.
    pub(super) written: u64,
    /// Deletions durable in the store.
    pub(super) deleted: u64,
    /// Writes and deletions that lost against a newer version.
    pub(super) superseded: u64,
    /// Records in the dead-letter topic.
    pub(super) dead_lettered: u64,
    /// Points that searches can find.
    pub(super) points: u64,
    /// Distinct ids whose last valid record is not a deletion.
    pub(super) expected_points: u64,
    /// Documents tagged with the sample's own topic.
    pub(super) accuracy: f64,
    /// Fixed queries whose first hit has the query's topic.
    pub(super) search_first_hit_share: f64,
    /// Documents whose text did not fit.
    pub(super) truncated: u64,
    /// Tokens unknown to the vocabulary.
    pub(super) unknown_tokens: u64,
    /// From the first record produced to the last one committed.
    pub(super) documents_per_second: f64,
    /// The whole demo, starting included.
    pub(super) seconds: f64,
}

/// A query and what was found.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) query: String,
    pub(super) hits: Vec<SearchHit>,
}

/// What was found in the store and in the dead-letter topic.
#[derive(Debug)]
pub(super) struct Outcome {
    tagged: Vec<(String, String, Option<String>)>,
    topics: Vec<(String, u64)>,
    undead: Vec<String>,
    expected_dead_letters: usize,
    dead_letters: Vec<StoredDeadLetter>,
    documents: Vec<Value>,
    searches: Vec<Search>,
    pub(super) search_share: f64,
}

impl Outcome {
    pub(super) fn accuracy(&self) -> f64 {
        let right = self
            .tagged
            .iter()
            .filter(|(_, truth, found)| found.as_ref() == Some(truth))
            .count();
        right as f64 / self.tagged.len().max(1) as f64
    }
}

/// The whole report.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) summary: Summary,
    pub(super) outcome: Outcome,
}

impl Report {
    pub(super) async fn gather(
        engine: &mut Engine,
        store: &dyn Store,
        expectation: &Expectation,
        dead_letters: Vec<StoredDeadLetter>,
    ) -> Result<Outcome, Failure> {
        let mut tagged = Vec::new();
        for (id, topic) in &expectation.documents {
            tagged.push((id.clone(), topic.clone(), topic_of(store, id).await?));
        }
        let mut undead = Vec::new();
        for id in &expectation.deleted {
            if topic_of(store, id).await?.is_some() {
                undead.push(id.clone());
            }
        }
        let mut topics = Vec::new();
        for label in engine.label_names() {
            let filter = PointFilter {
                topic: Some(label.clone()),
                ..PointFilter::default()
            };
            topics.push((label, store.count(filter).await.map_err(Failure::failed)?));
        }
        let mut documents = Vec::new();
        let step = (expectation.documents.len() / SHOWN_DOCUMENTS).max(1);
        for id in expectation
            .documents
            .keys()
            .step_by(step)
            .take(SHOWN_DOCUMENTS)
        {
            let id = crate::document::DocumentId::new(id).map_err(Failure::failed)?;
            documents.extend(
                store
                    .fetch(id)
                    .await
                    .map_err(Failure::failed)?
                    .map(Value::Object),
            );
        }
        let (searches, search_share) = searches(engine, store).await?;
        Ok(Outcome {
            tagged,
            topics,
            undead,
            expected_dead_letters: expectation.dead_letters,
            dead_letters,
            documents,
            searches,
            search_share,
        })
    }

    /// Fails when anything that was produced is missing, stale or unaccounted for.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let (summary, outcome) = (&self.summary, &self.outcome);
        let mut faults = Vec::new();
        let missing = outcome
            .tagged
            .iter()
            .filter(|(_, _, found)| found.is_none())
            .count();
        if missing > 0 {
            faults.push(format!("{missing} documents are missing"));
        }
        if summary.points != summary.expected_points {
            faults.push(format!(
                "{} points instead of {}",
                summary.points, summary.expected_points
            ));
        }
        if !outcome.undead.is_empty() {
            faults.push(format!(
                "deleted documents came back: {}",
                outcome.undead.join(", ")
            ));
        }
        if outcome.dead_letters.len() != outcome.expected_dead_letters {
            faults.push(format!(
                "{} dead letters instead of {}",
                outcome.dead_letters.len(),
                outcome.expected_dead_letters
            ));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Failure::failed(format!(
                "the demo did not come out right: {}",
                faults.join("; ")
            )))
        }
    }

    pub(super) fn show(&self) -> Result<(), Failure> {
        self.show_documents()?;
        self.show_topics()?;
        for search in &self.outcome.searches {
            output::line(format_args!("\nsearch: {}", search.query))?;
            output::line(hits_table(&search.hits))?;
        }
        self.show_dead_letters()?;
        self.show_summary()
    }

    fn show_documents(&self) -> Result<(), Failure> {
        output::line("Some of the tagged documents")?;
        let mut table = output::table(&["id", "title", "topic", "probability"]);
        for document in &self.outcome.documents {
            let text = |name: &str| {
                document
                    .get(name)
                    .and_then(Value::as_str)
                    .unwrap_or("-")
                    .to_owned()
            };
            let probability = document
                .get("probability")
                .and_then(Value::as_f64)
                .unwrap_or_default();
            table.add_row(vec![
                text("id"),
                output::shortened(&text("title"), TITLE_CHARACTERS),
                text("topic"),
                output::percent(probability),
            ]);
        }
        output::line(table)
    }

    fn show_topics(&self) -> Result<(), Failure> {
        output::line("\nDocuments a topic")?;
        let most = self
            .outcome
            .topics
            .iter()
            .map(|(_, count)| *count)
            .max()
            .unwrap_or(1)
            .max(1);
        let mut table = output::table(&["topic", "documents", ""]);
        for (topic, count) in &self.outcome.topics {
            let bar = usize::try_from(count * 30 / most).unwrap_or_default();
            table.add_row(vec![topic.clone(), count.to_string(), "█".repeat(bar)]);
        }
        output::line(table)
    }

    fn show_dead_letters(&self) -> Result<(), Failure> {
        output::line(format_args!(
            "\nDead letters, in the topic {DEAD_LETTER_TOPIC}"
        ))?;
        let mut table = output::table(&["from", "key", "stage", "why"]);
        for letter in &self.outcome.dead_letters {
            table.add_row(vec![
                letter.origin(),
                letter.key_text(),
                letter.stage.clone(),
                letter.message.clone(),
            ]);
        }
        output::line(table)
    }

    fn show_summary(&self) -> Result<(), Failure> {
        let summary = &self.summary;
        output::line(format_args!(
            "\n{} records produced: {} tagged, {} writes and {} deletions durable, {} superseded, \
             {} dead-lettered; {} points (expected {})",
            summary.produced,
            summary.tagged,
            summary.written,
            summary.deleted,
            summary.superseded,
            summary.dead_lettered,
            summary.points,
            summary.expected_points,
        ))?;
        output::line(format_args!(
            "accuracy on the samples {}; {} of the fixed queries find their topic first; {:.0} documents/s; {:.1} s in all",
            output::percent(summary.accuracy),
            output::percent(summary.search_first_hit_share),
            summary.documents_per_second,
            summary.seconds,
        ))
    }
}

/// Whether the first hit of each fixed query shares its topic, and the hits of the first few.
async fn searches(engine: &mut Engine, store: &dyn Store) -> Result<(Vec<Search>, f64), Failure> {
    let queries = samples::queries();
    let (mut shown, mut right) = (Vec::new(), 0_usize);
    for query in &queries {
        let hits = nearest(
            engine,
            store,
            &query.query,
            PointFilter::default(),
            SHOWN_HITS,
        )
        .await?;
        // The sample's own topic, which decoding keeps among the attributes; not the one that was predicted.
        let truth = hits
            .first()
            .and_then(|hit| hit.payload.get("attributes")?.get("topic")?.as_str());
        right += usize::from(truth == Some(&query.topic));
        if shown.len() < SHOWN_SEARCHES {
            shown.push(Search {
                query: query.query.clone(),
                hits,
            });
        }
    }
    Ok((shown, right as f64 / queries.len().max(1) as f64))
}

/// What came out, for one expected document.
async fn topic_of(store: &dyn Store, id: &str) -> Result<Option<String>, Failure> {
    let id = crate::document::DocumentId::new(id).map_err(Failure::failed)?;
    let payload = store.fetch(id).await.map_err(Failure::failed)?;
    Ok(payload.and_then(|payload| {
        payload
            .get("topic")
            .and_then(|topic| topic.as_str().map(str::to_owned))
    }))
}
