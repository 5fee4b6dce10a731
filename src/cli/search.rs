//! `search`: the documents nearest to a query, which is prompted and embedded as documents are.

use clap::Args;
use serde_json::{Map, Value, json};

use crate::assemble::{self, AssembleError, Engine};
use crate::cli::terminal::failure::Failure;
use crate::cli::terminal::output;
use crate::cli::terminal::runtime::block_on;
use crate::settings::Settings;
use crate::store::{PointFilter, SearchHit, Store};

/// Characters of a title in the table.
const TITLE_CHARACTERS: usize = 40;

/// Find the documents nearest to a query.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What to look for, in plain words.
    query: String,
    /// Only documents of this topic.
    #[arg(long, value_name = "LABEL")]
    topic: Option<String>,
    /// Only documents of this source.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// How many to show.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        if arguments.query.trim().is_empty() {
            return Err(AssembleError::EmptyText.into());
        }
        let mut engine = Engine::load(settings)?;
        let store = assemble::open_store(settings, &engine.expectation()).await?;
        let filter = PointFilter {
            topic: arguments.topic.clone(),
            source: arguments.source.clone(),
            ..PointFilter::default()
        };
        let hits = nearest(
            &mut engine,
            store.as_ref(),
            &arguments.query,
            filter,
            usize::from(arguments.limit),
        )
        .await;
        store.close().await.map_err(Failure::failed)?;
        show(&arguments.query, &hits?, arguments.json)
    })
}

/// Embeds a query and asks the store.
pub(super) async fn nearest(
    engine: &mut Engine,
    store: &dyn Store,
    query: &str,
    filter: PointFilter,
    limit: usize,
) -> Result<Vec<SearchHit>, Failure> {
    let vector = engine.embed(query)?;
    store
        .search(vector, filter, limit)
        .await
        .map_err(Failure::failed)
}

fn show(query: &str, hits: &[SearchHit], json: bool) -> Result<(), Failure> {
    if json {
        let hits: Vec<Value> = hits.iter().map(to_json).collect();
        return output::json(&json!({ "query": query, "hits": hits }));
    }
    if hits.is_empty() {
        return output::line("nothing found");
    }
    output::line(hits_table(hits))
}

fn to_json(hit: &SearchHit) -> Value {
    let mut object = Map::new();
    object.insert("score".to_owned(), json!(hit.score));
    object.extend(hit.payload.clone());
    Value::Object(object)
}

/// The hits, best first.
pub(super) fn hits_table(hits: &[SearchHit]) -> comfy_table::Table {
    let mut table = output::table(&["similarity", "topic", "title", "source", "published"]);
    for hit in hits {
        let field = |name: &str| {
            hit.payload
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or("-")
                .to_owned()
        };
        table.add_row(vec![
            format!("{:.3}", hit.score),
            field("topic"),
            output::shortened(&field("title"), TITLE_CHARACTERS),
            field("source"),
            field("published_at"),
        ]);
    }
    table
}
