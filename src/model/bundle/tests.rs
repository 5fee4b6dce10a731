//! Model bundles under test.

use super::*;

/// Writes a bundle whose files are small texts and returns its folder.
fn bundle_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut files = String::new();
    for (name, text) in [
        ("model.onnx", "a graph"),
        ("model.onnx.data", "weights"),
        ("tokenizer.json", "{}"),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
        let sha256 = digest::of_bytes(text.as_bytes());
        files += &format!(
            "[files.\"{name}\"]\nsha256 = \"{sha256}\"\nbytes = {}\n",
            text.len()
        );
    }
    let manifest = format!(
        "contract = \"tcbert-graph/1\"\nname = \"small\"\narchitecture = \"BertForMaskedLM\"\n\
         source = \"test\"\nrevision = \"1\"\nlicense = \"Apache-2.0\"\nhidden_size = 8\n\
         max_tokens = 64\nvocabulary_size = 100\nprecision = \"fp32\"\n{files}\
         [verification]\nstatus = \"verified\"\nmax_difference = 1e-6\n"
    );
    std::fs::write(folder.path().join(MANIFEST_FILE), manifest).unwrap();
    folder
}

fn rewrite_manifest(folder: &Path, from: &str, to: &str) {
    let path = folder.join(MANIFEST_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "the manifest has no {from:?}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

fn refusal(folder: &Path) -> String {
    Bundle::open(folder).unwrap_err().to_string()
}

#[test]
fn a_whole_bundle_opens_and_says_what_it_is() {
    let folder = bundle_folder();
    let bundle = Bundle::open(folder.path()).unwrap();
    assert_eq!(bundle.manifest().hidden_size, 8);
    assert_eq!(bundle.manifest().precision, Precision::Fp32);
    assert_eq!(bundle.doubt(), None);
    assert_eq!(bundle.fingerprint().len(), 64);
    assert_eq!(bundle.graph_bytes(), 14);
    assert!(bundle.graph_path(Device::Cpu).is_file());
    assert_eq!(
        bundle.graph_path(Device::Cpu),
        bundle.graph_path(Device::Cuda(0))
    );
    assert_eq!(bundle.manifest().tensorrt, None);
    assert!(bundle.tokenizer_path().is_file());
}

#[test]
fn an_altered_file_of_the_same_size_is_refused_by_name() {
    let folder = bundle_folder();
    std::fs::write(folder.path().join("model.onnx.data"), "Weights").unwrap();
    let message = refusal(folder.path());
    assert!(message.contains("model.onnx.data"), "{message}");
    assert!(message.contains("SHA-256"), "{message}");
}

#[test]
fn a_truncated_file_is_refused_by_name_and_size() {
    let folder = bundle_folder();
    std::fs::write(folder.path().join("model.onnx"), "a gr").unwrap();
    let message = refusal(folder.path());
    assert!(
        message.contains("model.onnx has 4 bytes, bundle.toml says 7"),
        "{message}"
    );
}

#[test]
fn a_missing_file_is_refused_by_name() {
    let folder = bundle_folder();
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let message = refusal(folder.path());
    assert!(message.contains("tokenizer.json"), "{message}");
    assert!(message.contains("missing"), "{message}");
}

#[test]
fn another_contract_is_named_even_where_its_keys_differ() {
    let folder = bundle_folder();
    rewrite_manifest(folder.path(), "tcbert-graph/1", "tcbert-graph/2");
    rewrite_manifest(folder.path(), "hidden_size", "width");
    let message = refusal(folder.path());
    assert!(message.contains("tcbert-graph/2"), "{message}");
    assert!(message.contains("tcbert-graph/1"), "{message}");
}

#[test]
fn missing_keys_files_and_folders_say_what_is_missing() {
    let folder = bundle_folder();
    rewrite_manifest(folder.path(), "hidden_size = 8\n", "");
    assert!(refusal(folder.path()).contains("hidden_size"));

    let folder = bundle_folder();
    rewrite_manifest(folder.path(), "[files.\"tokenizer.json\"]", "[files.other]");
    assert!(refusal(folder.path()).contains("tokenizer.json"));

    let folder = bundle_folder();
    std::fs::remove_file(folder.path().join(MANIFEST_FILE)).unwrap();
    assert!(refusal(folder.path()).contains("no bundle.toml"));
    assert!(refusal(&folder.path().join("nowhere")).contains("not a folder"));
}

#[test]
fn a_file_name_cannot_lead_out_of_the_folder() {
    let folder = bundle_folder();
    rewrite_manifest(folder.path(), "model.onnx.data", "../model.onnx.data");
    assert!(refusal(folder.path()).contains("plain file name"));
}

#[test]
fn an_absurd_width_is_refused() {
    let folder = bundle_folder();
    rewrite_manifest(folder.path(), "hidden_size = 8", "hidden_size = 9000000000");
    assert!(refusal(folder.path()).contains("hidden_size = 9000000000"));
}

#[test]
fn the_fingerprint_follows_the_tokenizer() {
    let folder = bundle_folder();
    let before = Bundle::open(folder.path())
        .unwrap()
        .fingerprint()
        .to_owned();
    std::fs::write(folder.path().join("tokenizer.json"), "[]").unwrap();
    rewrite_manifest(
        folder.path(),
        &digest::of_bytes(b"{}"),
        &digest::of_bytes(b"[]"),
    );
    let after = Bundle::open(folder.path()).unwrap();
    assert_ne!(before, after.fingerprint());
}

#[test]
fn a_bundle_without_verification_counts_as_unverified() {
    let folder = bundle_folder();
    rewrite_manifest(
        folder.path(),
        "[verification]\nstatus = \"verified\"",
        "[other]",
    );
    let doubt = Bundle::open(folder.path()).unwrap().doubt().unwrap();
    assert!(doubt.contains("never compared"), "{doubt}");
}

#[test]
fn a_bundle_that_missed_its_limits_says_by_how_much() {
    let folder = bundle_folder();
    rewrite_manifest(
        folder.path(),
        "status = \"verified\"",
        "status = \"unverified\"\nmin_cosine = 0.91",
    );
    let doubt = Bundle::open(folder.path()).unwrap().doubt().unwrap();
    assert!(
        doubt.contains("missed") && doubt.contains("0.91"),
        "{doubt}"
    );
}

#[test]
fn only_cuda_takes_the_graph_without_padding() {
    let folder = bundle_folder();
    let packed = "[files.\"model.packed.onnx\"]\nsha256 = \"";
    std::fs::write(folder.path().join("model.packed.onnx"), "packed").unwrap();
    rewrite_manifest(
        folder.path(),
        "[verification]",
        &format!(
            "{packed}{}\"\nbytes = 6\n[verification]",
            digest::of_bytes(b"packed")
        ),
    );
    let bundle = Bundle::open(folder.path()).unwrap();
    let name = |device| bundle.graph_path(device).file_name().unwrap().to_owned();
    assert_eq!(name(Device::Cuda(1)), "model.packed.onnx");
    assert_eq!(name(Device::Cpu), "model.onnx");
    assert_eq!(name(Device::TensorRt(0)), "model.onnx");
    assert_eq!(bundle.graph_bytes(), 14);
}

#[test]
fn the_shapes_for_tensorrt_are_read() {
    let folder = bundle_folder();
    rewrite_manifest(
        folder.path(),
        "[verification]",
        "[tensorrt]\nsmallest = \"input_ids:1x1\"\nbest = \"input_ids:256x64\"\nlargest = \"input_ids:1024x512\"\n[verification]",
    );
    let profile = Bundle::open(folder.path())
        .unwrap()
        .manifest()
        .tensorrt
        .clone();
    assert_eq!(profile.unwrap().best, "input_ids:256x64");
}
