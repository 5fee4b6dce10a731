//! What `/metrics` showed over time. Alerts wait for minutes and failures of tests last seconds, so what one
//! scrape shows is held for as long as the test says.

use std::collections::{BTreeMap, BTreeSet};

use super::promql::{Data, Labels, NAME};
use super::rules::{self, Firing, STEP};

/// The values of one scrape.
#[derive(Debug, Clone, Default)]
pub struct Page(pub BTreeMap<Labels, f64>);

impl Page {
    pub fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(sample).collect())
    }

    /// Whether there is a series that has these labels.
    pub fn shows(&self, name: &str, wanted: &[(&str, &str)]) -> bool {
        self.0.keys().any(|labels| has(labels, name, wanted))
    }

    /// The sum of the series that have these labels.
    pub fn sum(&self, name: &str, wanted: &[(&str, &str)]) -> f64 {
        let meant = self
            .0
            .iter()
            .filter(|(labels, _)| has(labels, name, wanted));
        meant.map(|(_, value)| value).sum()
    }
}

fn has(labels: &Labels, name: &str, wanted: &[(&str, &str)]) -> bool {
    labels[NAME] == name
        && wanted
            .iter()
            .all(|(label, value)| labels.get(*label).is_some_and(|found| found == value))
}

fn sample(line: &str) -> (Labels, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, inner) = series.split_once('{').unwrap_or((series, "}"));
    let mut labels = Labels::from([(NAME.to_owned(), name.to_owned())]);
    let inner = inner.strip_suffix('}').unwrap();
    for pair in inner.split("\",").filter(|pair| !pair.is_empty()) {
        let (label, value) = pair.split_once("=\"").unwrap();
        labels.insert(label.to_owned(), value.trim_end_matches('"').to_owned());
    }
    (labels, value.parse().unwrap())
}

/// All scrapes of one worker.
#[derive(Default)]
pub struct Film {
    data: Data,
    /// Minutes that have passed.
    now: i64,
    /// When the failure began and when it was over.
    failed: (i64, i64),
}

impl Film {
    /// Shows what was scraped for so many minutes: `None` where nobody responded.
    pub fn hold(&mut self, page: Option<&Page>, minutes: i64) {
        let up = Labels::from([(NAME.to_owned(), "up".to_owned())]);
        let mut shown = page.cloned().unwrap_or_default().0;
        shown.insert(up, if page.is_some() { 1.0 } else { 0.0 });
        self.show(shown, minutes);
    }

    /// Nobody is scraped for so many minutes: the target is gone from the list.
    pub fn vanish(&mut self, minutes: i64) {
        self.show(BTreeMap::new(), minutes);
    }

    fn show(&mut self, shown: BTreeMap<Labels, f64>, minutes: i64) {
        let of_target = shown.into_iter().map(|(mut labels, value)| {
            labels.insert("job".to_owned(), "tcbert-worker".to_owned());
            labels.insert("instance".to_owned(), "worker:9464".to_owned());
            (labels, value)
        });
        let shown: BTreeMap<Labels, f64> = of_target.collect();
        for minute in self.now..self.now + minutes {
            let time = minute * STEP;
            for (labels, value) in &shown {
                let series = self.data.entry(labels.clone()).or_default();
                series.0.insert(time, Some(*value));
            }
            for (labels, series) in &mut self.data {
                let ends = series.0.values().next_back().is_some_and(Option::is_some);
                if ends && !shown.contains_key(labels) {
                    series.0.insert(time, None);
                }
            }
        }
        self.now += minutes;
    }

    /// From here on something is wrong.
    pub fn failure_begins(&mut self) {
        self.failed.0 = self.now * STEP;
    }

    /// From here on all is well.
    pub fn failure_ends(&mut self) {
        self.failed.1 = self.now * STEP;
    }

    /// Each of `expected`, an alert with labels, fired once and cleared, and nothing else did.
    pub fn assert_fired(&self, expected: &[(&str, &[(&str, &str)])]) {
        let rules = rules::read();
        let firings = rules::run(&rules, &self.data, (self.now - 1) * STEP);
        let is_meant = |firing: &Firing, (alert, labels): &(&str, &[(&str, &str)])| {
            let mut wanted = labels.iter();
            firing.alert == *alert
                && wanted.all(|(label, value)| {
                    firing
                        .labels
                        .get(*label)
                        .is_some_and(|found| found == value)
                })
        };
        for one in expected {
            let fired: Vec<_> = firings
                .iter()
                .filter(|firing| is_meant(firing, one))
                .collect();
            let [fired] = fired.as_slice() else {
                panic!("{one:?} is to fire once: {firings:#?}");
            };
            let (begins, ends) = self.failed;
            assert!(fired.from >= begins, "{fired:?} before {begins}");
            let cleared = fired.until.is_some_and(|until| until >= ends);
            assert!(cleared, "{fired:?} does not last to {ends} and clear");
        }
        for firing in &firings {
            assert!(
                expected.iter().any(|one| is_meant(firing, one)),
                "it had no reason: {firing:?}"
            );
        }
    }

    /// Each of these series took more than one value.
    pub fn assert_moved(&self, expected: &[&str]) {
        let moved = self.moved();
        for series in expected {
            assert!(moved.contains(*series), "{series} did not move: {moved:#?}");
        }
    }

    /// What took more than one value: names, and names with each of their labels.
    fn moved(&self) -> BTreeSet<String> {
        let mut moved = BTreeSet::new();
        for (labels, series) in &self.data {
            let mut values = series.0.values().flatten();
            let first = values.next();
            if values.all(|value| Some(value) == first) {
                continue;
            }
            let name = &labels[NAME];
            moved.insert(name.clone());
            for (label, value) in labels.iter().filter(|(label, _)| *label != NAME) {
                moved.insert(format!("{name}{{{label}={value:?}}}"));
            }
        }
        moved
    }
}
