//! What a measurement gives: one JSON object, rows for a table, and a picture of the stages' shares.
//! Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

/// The whole measurement; scripts read its JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the bundle, or `none`.
    pub model: String,
    /// What the model ran on.
    pub device: String,
    /// Number format of the weights.
    pub precision: String,
    /// By name of the mix.
    pub mixes: BTreeMap<&'static str, MixReport>,
    /// Titles from the broker to committed with a model that answers at once and a store that counts.
    pub without_model_documents_per_second: f64,
    /// From the start of a process to its first tagged document.
    pub start_seconds: f64,
}

/// What one mix of documents gave; rates are medians over the rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MixReport {
    /// ONNX Runtime alone over the same batches.
    pub ceiling_documents_per_second: f64,
    /// From the broker to the store.
    pub pipeline_documents_per_second: f64,
    /// The median of the rounds' ratios, each of a run of the pipeline and the ceiling's before and after it.
    pub ratio: f64,
    /// All rounds' ratios, in their order: how far apart they lie tells what the median is worth.
    pub ratios: Vec<f64>,
    /// The ceiling's processor time by the pipeline's, start and end of each included: what a machine
    /// that does other work besides cannot distort.
    pub cpu_ratio: f64,
    /// Tokens of texts and prompts by tokens of batches.
    pub padding_efficiency: f64,
    /// From produced to durably written, at half the rate.
    pub latency_p50_ms: f64,
    /// From produced to durably written, at half the rate.
    pub latency_p99_ms: f64,
    /// Peak of the process's resident memory during a run, the broker's not counted.
    pub peak_rss_mib: f64,
    /// Seconds of one thread for a thousand documents, by stage.
    pub stages: BTreeMap<&'static str, f64>,
    /// Tokens of texts and prompts a second, padding not counted.
    #[serde(skip)]
    pub tokens_per_second: f64,
}

impl MixReport {
    /// The lowest and the highest ratio of all rounds; none without a round.
    pub fn ratio_range(&self) -> Option<(f64, f64)> {
        let lowest = self.ratios.iter().copied().min_by(f64::total_cmp)?;
        let highest = self.ratios.iter().copied().max_by(f64::total_cmp)?;
        Some((lowest, highest))
    }
}

/// Colours of the stages, apart from each other for every eye.
const COLOURS: [&str; 8] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999",
];
const BAR_WIDTH: f64 = 640.0;
const BAR_LEFT: f64 = 90.0;
const ROW_HEIGHT: f64 = 54.0;

/// A bar for each mix, divided by the time that each stage takes.
pub fn picture(report: &Report) -> String {
    let names: Vec<&str> = report
        .mixes
        .values()
        .next()
        .map(|mix| mix.stages.keys().copied().collect())
        .unwrap_or_default();
    let height = 70.0 + ROW_HEIGHT * report.mixes.len() as f64 + 24.0 * names.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"28\" font-size=\"15\">Share of each stage, {} {} on {}</text>\n",
        report.model, report.precision, report.device
    );
    let mut top = 48.0;
    for (mix, result) in &report.mixes {
        bar(&mut svg, mix, result, top);
        top += ROW_HEIGHT;
    }
    for (name, colour) in names.iter().zip(COLOURS.iter().cycle()) {
        let _ = writeln!(
            svg,
            "<rect x=\"{BAR_LEFT}\" y=\"{top}\" width=\"14\" height=\"14\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\">{name}</text>",
            BAR_LEFT + 22.0,
            top + 12.0
        );
        top += 24.0;
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar(svg: &mut String, mix: &str, result: &MixReport, top: f64) {
    let whole: f64 = result.stages.values().sum::<f64>().max(f64::MIN_POSITIVE);
    let _ = writeln!(svg, "<text x=\"20\" y=\"{}\">{mix}</text>", top + 19.0);
    let mut left = BAR_LEFT;
    for ((name, seconds), colour) in result.stages.iter().zip(COLOURS.iter().cycle()) {
        let width = BAR_WIDTH * seconds / whole;
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"28\" fill=\"{colour}\">\
             <title>{name}: {:.1} % ({seconds:.4} s per 1,000 documents)</title></rect>",
            100.0 * seconds / whole
        );
        left += width;
    }
    let _ = writeln!(
        svg,
        "<text x=\"{BAR_LEFT}\" y=\"{}\" font-size=\"11\" fill=\"#444\">{:.0} documents/s, {:.1} % of the ceiling</text>",
        top + 42.0,
        result.pipeline_documents_per_second,
        100.0 * result.ratio
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mix = MixReport {
            ceiling_documents_per_second: 100.0,
            pipeline_documents_per_second: 97.0,
            ratio: 0.97,
            ratios: vec![0.98, 0.97, 0.9],
            cpu_ratio: 0.95,
            padding_efficiency: 0.96,
            latency_p50_ms: 20.0,
            latency_p99_ms: 40.0,
            peak_rss_mib: 120.0,
            stages: BTreeMap::from([("decode", 0.1), ("infer", 0.9)]),
            tokens_per_second: 4000.0,
        };
        Report {
            model: "compact".to_owned(),
            device: "cpu".to_owned(),
            precision: "int8".to_owned(),
            mixes: BTreeMap::from([("titles", mix)]),
            without_model_documents_per_second: 31_000.0,
            start_seconds: 0.4,
        }
    }

    #[test]
    fn the_json_has_the_keys_that_scripts_read() {
        let json = serde_json::to_value(report()).unwrap();
        let titles = &json["mixes"]["titles"];
        for key in [
            "ceiling_documents_per_second",
            "pipeline_documents_per_second",
            "ratio",
            "cpu_ratio",
            "padding_efficiency",
            "latency_p50_ms",
            "latency_p99_ms",
            "peak_rss_mib",
        ] {
            assert!(titles[key].is_f64(), "{key}");
        }
        assert_eq!(titles["ratios"], serde_json::json!([0.98, 0.97, 0.9]));
        assert_eq!(titles["stages"]["infer"], 0.9);
        for key in ["model", "device", "precision"] {
            assert!(json[key].is_string(), "{key}");
        }
        assert_eq!(json["without_model_documents_per_second"], 31_000.0);
        assert_eq!(json["start_seconds"], 0.4);
        assert!(titles.get("tokens_per_second").is_none());
    }

    #[test]
    fn the_range_spans_all_rounds() {
        let mut report = report();
        let titles = report.mixes.get_mut("titles").unwrap();
        assert_eq!(titles.ratio_range(), Some((0.9, 0.98)));
        titles.ratios.clear();
        assert_eq!(titles.ratio_range(), None);
    }

    #[test]
    fn the_picture_divides_the_bar_by_time() {
        let svg = picture(&report());
        assert!(svg.contains("width=\"64.0\""), "{svg}");
        assert!(svg.contains("width=\"576.0\""), "{svg}");
        assert!(svg.contains("infer: 90.0 %"), "{svg}");
    }
}
