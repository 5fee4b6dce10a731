//! Runs of the ceiling and of the pipeline in turn, and what their ratios are. Each run of the pipeline
//! lies between two of the ceiling, so that a machine that slows down or recovers changes both sides alike.
//! Pure.

/// What was measured of one run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ran {
    /// Documents a second.
    pub(super) per_second: f64,
    /// Processor time of the process over the whole run, in seconds.
    pub(super) processor_seconds: f64,
}

/// A run of the ceiling, and as often as wanted one of the pipeline followed by another of the ceiling.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    ceilings: Vec<Ran>,
    pipelines: Vec<Ran>,
}

impl Turns {
    pub(super) fn begin(ceiling: Ran) -> Self {
        Self {
            ceilings: vec![ceiling],
            pipelines: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, pipeline: Ran, ceiling_after: Ran) {
        self.pipelines.push(pipeline);
        self.ceilings.push(ceiling_after);
    }

    /// Rates of the ceiling, one more than of the pipeline.
    pub(super) fn ceiling_rates(&self) -> Vec<f64> {
        self.ceilings.iter().map(|ran| ran.per_second).collect()
    }

    pub(super) fn pipeline_rates(&self) -> Vec<f64> {
        self.pipelines.iter().map(|ran| ran.per_second).collect()
    }

    /// The pipeline's rate by the ceiling's around it, for each run of the pipeline.
    pub(super) fn ratios(&self) -> Vec<f64> {
        self.beside(|ran| ran.per_second)
            .map(|(pipeline, ceiling)| pipeline / ceiling.max(f64::MIN_POSITIVE))
            .collect()
    }

    /// The ceiling's processor time around a run of the pipeline by that of the run.
    pub(super) fn processor_ratios(&self) -> Vec<f64> {
        self.beside(|ran| ran.processor_seconds)
            .map(|(pipeline, ceiling)| ceiling / pipeline.max(f64::MIN_POSITIVE))
            .collect()
    }

    /// Each run of the pipeline and the geometric mean of the ceilings before and after it.
    fn beside(&self, of: impl Fn(&Ran) -> f64) -> impl Iterator<Item = (f64, f64)> {
        self.pipelines
            .iter()
            .zip(self.ceilings.windows(2))
            .map(move |(pipeline, around)| {
                let ceiling = around.iter().map(&of).product::<f64>().sqrt();
                (of(pipeline), ceiling)
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ran(per_second: f64) -> Ran {
        Ran {
            per_second,
            processor_seconds: 100.0 / per_second,
        }
    }

    proptest! {
        #[test]
        fn a_machine_that_slows_down_steadily_changes_no_ratio(
            cost in 0.5..1.0_f64,
            drift in 0.8..1.25_f64,
            rounds in 1..8_usize,
        ) {
            let mut speed = 1_000.0;
            let mut turns = Turns::begin(ran(speed));
            for _ in 0..rounds {
                speed *= drift;
                let pipeline = ran(speed * cost);
                speed *= drift;
                turns.add(pipeline, ran(speed));
            }
            prop_assert_eq!(turns.ratios().len(), rounds);
            for ratio in turns.ratios().into_iter().chain(turns.processor_ratios()) {
                prop_assert!((ratio - cost).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn no_round_has_no_ratio() {
        let turns = Turns::begin(ran(10.0));
        assert!(turns.ratios().is_empty());
        assert_eq!(turns.ceiling_rates().len(), 1);
    }
}
