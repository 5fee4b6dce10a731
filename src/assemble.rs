//! Settings to built stages: the one place where a section of the configuration becomes a bundle, a
//! tagger, a store. Knows every stage's constructor; must not know how stages are wired.

use std::sync::Arc;
use std::time::Duration;

use crate::decode::{Decoder, InvalidDecodeSettings};
use crate::document::is_blank;
use crate::model::{Bundle, BundleError, Model, ModelError, OnnxModel};
use crate::pipeline::{Stages, Wiring};
use crate::score::{ModelIdentity, PlanReport, Tagger, TaggerError, Tagging, VerbalizerPlan};
use crate::settings::Settings;
use crate::source::{DeadLetterSink, Source};
use crate::store::migrate::Target;
use crate::store::point::Provenance;
use crate::store::{self, ApiKeyError, CollectionSpec, Expectation, Store, StoreError, StoreKind};
use crate::taxonomy::{Taxonomy, TaxonomyError};
use crate::telemetry::Metrics;
use crate::tokenize::{EncodedText, PromptTokenizer, TokenizerError};

/// Name of the vector in the collection; empty is Qdrant's unnamed one.
const VECTOR_NAME: &str = "";

/// Why stages cannot be built from the settings.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The bundle is missing, broken or of another contract.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The tokenizer of the bundle cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The taxonomy cannot be used.
    #[error(transparent)]
    Taxonomy(#[from] TaxonomyError),
    /// Taxonomy and model do not go together.
    #[error(transparent)]
    Tagger(#[from] TaggerError),
    /// ONNX Runtime, the device or the graph cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Decoding cannot be set up.
    #[error(transparent)]
    Decode(#[from] InvalidDecodeSettings),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file of the store's key gives none.
    #[error(transparent)]
    ApiKey(#[from] ApiKeyError),
    /// A text without anything to read.
    #[error("the text is empty")]
    EmptyText,
    /// The model gave no number for a text.
    #[error("the model gave a value that is not a number for this text")]
    NotFinite,
    /// A thread ended early.
    #[error("a thread ended early: {0}")]
    Thread(String),
}

impl AssembleError {
    /// Whether a setting, or a file that one names, has to be corrected; otherwise the work failed.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Taxonomy(_) | Self::Decode(_) | Self::ApiKey(_) => true,
            Self::Bundle(error) => names_no_bundle(error),
            Self::Model(error) => is_setting_of_model(error),
            Self::Tagger(error) => match error {
                TaggerError::Taxonomy(_)
                | TaggerError::Plan(_)
                | TaggerError::Whitening(_)
                | TaggerError::TooManyTokens { .. } => true,
                TaggerError::Model(error) => is_setting_of_model(error),
                TaggerError::Shape { .. }
                | TaggerError::Calibration
                | TaggerError::NotCalibrated => false,
            },
            Self::Tokenizer(_)
            | Self::Store(_)
            | Self::EmptyText
            | Self::NotFinite
            | Self::Thread(_) => false,
        }
    }
}

fn names_no_bundle(error: &BundleError) -> bool {
    matches!(error, BundleError::NoFolder(_) | BundleError::NoManifest(_))
}

fn is_setting_of_model(error: &ModelError) -> bool {
    match error {
        ModelError::Bundle(error) => names_no_bundle(error),
        ModelError::Runtime(_) | ModelError::Device(_) | ModelError::Prepared { .. } => true,
        ModelError::Load { .. } | ModelError::Contract { .. } | ModelError::Run { .. } => false,
    }
}

/// A verified bundle, its tagger and one model for each inference thread.
pub struct Engine {
    bundle: Bundle,
    tagger: Tagger,
    models: Vec<Box<dyn Model>>,
}

impl Engine {
    /// Opens and verifies the bundle, plans the taxonomy and loads the sessions.
    ///
    /// # Errors
    /// The first of them that cannot be used, with what to do.
    pub fn load(settings: &Settings) -> Result<Self, AssembleError> {
        let bundle = settings.model.open_bundle()?;
        let tokenizer = Arc::new(PromptTokenizer::from_file(&bundle.tokenizer_path())?);
        let tagger = Tagger::new(&settings.tagging, tokenizer, &identity(&bundle))?;
        let models = OnnxModel::load_all(&bundle, &settings.model)?;
        let models = models
            .into_iter()
            .map(|model| Box::new(model) as Box<dyn Model>)
            .collect();
        Self::with_models(bundle, tagger, models)
    }

    /// An engine over models that are already loaded; never none.
    ///
    /// # Errors
    /// When the taxonomy asks for calibration and the model fails on the empty document.
    pub fn with_models(
        bundle: Bundle,
        mut tagger: Tagger,
        mut models: Vec<Box<dyn Model>>,
    ) -> Result<Self, AssembleError> {
        if let Some(model) = models.first_mut() {
            tagger.calibrate(model.as_mut())?;
        }
        Ok(Self {
            bundle,
            tagger,
            models,
        })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The tagger.
    pub fn tagger(&self) -> &Tagger {
        &self.tagger
    }

    /// The taxonomy, with the overrides of the settings.
    pub fn taxonomy(&self) -> &Taxonomy {
        self.tagger.taxonomy()
    }

    /// Label names in the taxonomy's order.
    pub fn label_names(&self) -> Vec<String> {
        self.taxonomy()
            .labels
            .iter()
            .map(|label| label.name.clone())
            .collect()
    }

    /// Tagger and models, for callers that run batches of their own.
    pub fn parts(&mut self) -> (&Tagger, &mut [Box<dyn Model>]) {
        (&self.tagger, &mut self.models)
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let manifest = self.bundle.manifest();
        format!(
            "{} ({}, {}, {} dimensions, {} tokens), {} session{}",
            manifest.name,
            manifest.architecture,
            manifest.precision.as_str(),
            manifest.hidden_size,
            manifest.max_tokens,
            self.models.len(),
            if self.models.len() == 1 { "" } else { "s" },
        )
    }

    /// The embedding of a search query, prompted as documents are.
    ///
    /// # Errors
    /// When it is empty or the model fails.
    pub fn embed(&mut self, query: &str) -> Result<Vec<f32>, AssembleError> {
        if is_blank(query) {
            return Err(AssembleError::EmptyText);
        }
        let encoded = self.tagger.encode(query);
        let Some(model) = self.models.first_mut() else {
            return Err(AssembleError::NotFinite);
        };
        let embeddings = self.tagger.embed(model.as_mut(), &[&encoded])?;
        embeddings
            .into_iter()
            .next()
            .and_then(Result::ok)
            .ok_or(AssembleError::NotFinite)
    }

    /// What a collection must be for this engine.
    pub fn expectation(&self) -> Expectation {
        expectation(
            self.tagger.hidden_size(),
            self.tagger.fingerprints().embedding.clone(),
        )
    }

    /// The stages of a pipeline, from this engine and the ends that differ between commands.
    ///
    /// # Errors
    /// When decoding cannot be set up.
    pub fn into_stages(
        self,
        settings: &Settings,
        source: Arc<dyn Source>,
        store: Arc<dyn Store>,
        dead_letters: Arc<dyn DeadLetterSink>,
        metrics: Metrics,
    ) -> Result<Stages, AssembleError> {
        let fingerprints = self.tagger.fingerprints();
        let provenance = Provenance {
            embedding_fingerprint: fingerprints.embedding.clone(),
            labelling_fingerprint: fingerprints.labelling.clone(),
            keep_text: settings.store.keep_text,
        };
        Ok(Stages {
            source,
            decoder: Decoder::new(&settings.decode)?,
            text: settings.decode.text_settings(),
            tagger: self.tagger,
            models: self.models,
            provenance,
            store,
            dead_letters,
            metrics,
        })
    }
}

fn identity(bundle: &Bundle) -> ModelIdentity {
    ModelIdentity {
        fingerprint: bundle.fingerprint().to_owned(),
        max_tokens: bundle.manifest().max_tokens,
        hidden_size: bundle.manifest().hidden_size,
    }
}

fn expectation(vector_size: usize, embedding_fingerprint: String) -> Expectation {
    Expectation {
        vector: CollectionSpec {
            vector_name: VECTOR_NAME.to_owned(),
            vector_size,
        },
        embedding_fingerprint,
    }
}

/// Loads an engine without holding up the runtime.
///
/// # Errors
/// As [`Engine::load`].
pub async fn load_engine(settings: Settings) -> Result<Engine, AssembleError> {
    tokio::task::spawn_blocking(move || Engine::load(&settings))
        .await
        .map_err(|error| AssembleError::Thread(error.to_string()))?
}

/// How the words of the configured taxonomy fare with the bundle's vocabulary, even where no plan
/// can be made of them.
///
/// # Errors
/// When bundle, tokenizer or taxonomy cannot be read.
pub fn taxonomy_report(settings: &Settings) -> Result<(Taxonomy, PlanReport), AssembleError> {
    let bundle = settings.model.open_bundle()?;
    let tokenizer = PromptTokenizer::from_file(&bundle.tokenizer_path())?;
    let taxonomy = settings.tagging.load_taxonomy()?;
    let report = VerbalizerPlan::report(&taxonomy, &tokenizer);
    Ok((taxonomy, report))
}

/// What the collection must be for the configured bundle and taxonomy, without loading a session.
///
/// # Errors
/// When bundle, tokenizer or taxonomy cannot be used.
pub fn expected_collection(settings: &Settings) -> Result<Expectation, AssembleError> {
    let bundle = settings.model.open_bundle()?;
    let tokenizer = Arc::new(PromptTokenizer::from_file(&bundle.tokenizer_path())?);
    let tagger = Tagger::new(&settings.tagging, tokenizer, &identity(&bundle))?;
    Ok(expectation(
        tagger.hidden_size(),
        tagger.fingerprints().embedding.clone(),
    ))
}

/// What migrations of the configured store lead to.
///
/// # Errors
/// As [`expected_collection`].
pub fn migration_target(settings: &Settings) -> Result<Target, AssembleError> {
    Ok(Target::new(&settings.store, expected_collection(settings)?))
}

/// Connects to the store without looking at the collection, which need not exist.
///
/// # Errors
/// With what to do.
pub async fn connect_store(settings: &Settings) -> Result<Arc<dyn Store>, AssembleError> {
    check_key(settings)?;
    Ok(store::connect(&settings.store).await?)
}

/// A file without a key is a fault of the configuration, not of the store.
fn check_key(settings: &Settings) -> Result<(), ApiKeyError> {
    match settings.store.kind {
        StoreKind::Embedded => Ok(()),
        StoreKind::Qdrant => settings.store.resolve_api_key().map(drop),
    }
}

/// Opens the store for writing: pending migrations are applied if configured, and a collection that
/// does not fit is refused.
///
/// # Errors
/// With what to do.
pub async fn open_store_for_run(
    settings: &Settings,
    expectation: &Expectation,
) -> Result<Arc<dyn Store>, AssembleError> {
    check_key(settings)?;
    let apply = settings.store.apply_migrations;
    Ok(store::open(&settings.store, expectation, apply, jiff::Timestamp::now()).await?)
}

/// The second half of [`open_store_for_run`], for a store that is connected already.
///
/// # Errors
/// With what to do; the store is closed then.
pub async fn prepare_store_for_run(
    store: &Arc<dyn Store>,
    settings: &Settings,
    expectation: &Expectation,
) -> Result<(), AssembleError> {
    let apply = settings.store.apply_migrations;
    let now = jiff::Timestamp::now();
    Ok(store::prepare(store, &settings.store, expectation, apply, now).await?)
}

/// Opens the store for reading: a collection that does not fit is refused, nothing is changed.
///
/// # Errors
/// With what to do.
pub async fn open_store(
    settings: &Settings,
    expectation: &Expectation,
) -> Result<Arc<dyn Store>, AssembleError> {
    check_key(settings)?;
    Ok(store::open(&settings.store, expectation, false, jiff::Timestamp::now()).await?)
}

/// How the stages are wired.
pub fn wiring(settings: &Settings) -> Wiring {
    Wiring {
        pipeline: settings.pipeline.clone(),
        batch: settings.batch.clone(),
        batch_points: settings.store.batch_points(),
        write_concurrency: settings.store.concurrency,
        write_linger: settings
            .pipeline
            .write_linger_ms
            .map_or_else(|| settings.store.kind.write_linger(), Duration::from_millis),
        commit_interval: settings.kafka.commit_interval(),
        revoke_drain: settings.kafka.revoke_drain(),
        future_tolerance: settings.decode.future_tolerance(),
        throttle: None,
        health: None,
    }
}

/// Encodes texts, and says of each whether there is anything to read.
pub fn encode_all(tagger: &Tagger, texts: &[&str]) -> Vec<Result<EncodedText, AssembleError>> {
    texts
        .iter()
        .map(|text| {
            if is_blank(text) {
                Err(AssembleError::EmptyText)
            } else {
                Ok(tagger.encode(text))
            }
        })
        .collect()
}

/// One tagging, or why there is none.
pub type Tagged = Result<Tagging, AssembleError>;
