//! The part of PromQL that the alerts use, evaluated as Prometheus does. What it does not know is an error.

use std::collections::BTreeMap;

/// Labels of a series, its name under `__name__`.
pub type Labels = BTreeMap<String, String>;

pub const NAME: &str = "__name__";
/// How long a sample counts where nothing newer came.
const LOOK_BACK: i64 = 300;

/// Samples by their time in seconds; `None` where the series ended.
#[derive(Debug, Clone, Default)]
pub struct Series(pub BTreeMap<i64, Option<f64>>);

pub type Data = BTreeMap<Labels, Series>;
pub type Vector = Vec<(Labels, f64)>;

#[derive(Debug, Clone)]
pub enum Expression {
    Number(f64),
    Selector {
        name: String,
        /// Label, whether it is to be equal, value.
        matchers: Vec<(String, bool, String)>,
    },
    /// What it holds over so many seconds, looked at every so many.
    Range(Box<Expression>, i64, Option<i64>),
    Call(String, Box<Expression>),
    Aggregate(String, Vec<String>, Box<Expression>),
    Binary(String, Box<Expression>, Box<Expression>),
}

enum Value {
    Number(f64),
    Vector(Vector),
}

impl Expression {
    pub fn parse(text: &str) -> Self {
        let mut parser = Parser {
            tokens: tokens(text),
            at: 0,
        };
        let whole = parser.binary(0);
        assert_eq!(parser.peek(), "", "{text}: more than an expression");
        whole
    }

    /// The vector that it is at a time.
    pub fn at(&self, data: &Data, time: i64) -> Vector {
        match self.value(data, time) {
            Value::Vector(vector) => vector,
            Value::Number(_) => panic!("an alert over a number: {self:?}"),
        }
    }

    fn value(&self, data: &Data, time: i64) -> Value {
        Value::Vector(match self {
            Self::Number(number) => return Value::Number(*number),
            Self::Selector { .. } => self.select(data, |series| series.at(time)),
            Self::Range(..) => panic!("a range outside of a function: {self:?}"),
            Self::Call(name, of) if name == "absent" => absent(of, &of.at(data, time)),
            Self::Call(name, of) => {
                let Self::Range(_, length, _) = of.as_ref() else {
                    panic!("{name} of what is no range: {of:?}");
                };
                let samples = of.samples(data, time).into_iter();
                let applied = samples.filter_map(|(labels, samples)| {
                    let value = match name.as_str() {
                        "rate" => increase(&samples, time - length, time)? / seconds(*length),
                        "increase" => increase(&samples, time - length, time)?,
                        "deriv" => slope(&samples)?,
                        _ => panic!("unknown function {name}"),
                    };
                    Some((nameless(labels), value))
                });
                applied.collect()
            }
            Self::Aggregate(name, by, of) => aggregate(name, by, of.at(data, time)),
            Self::Binary(operator, left, right) => {
                return binary(operator, left.value(data, time), right.value(data, time));
            }
        })
    }

    fn select<T>(&self, data: &Data, of: impl Fn(&Series) -> Option<T>) -> Vec<(Labels, T)> {
        let Self::Selector { name, matchers } = self else {
            panic!("not a selector: {self:?}");
        };
        let is_meant = |labels: &Labels| {
            labels[NAME] == *name
                && matchers.iter().all(|(label, equal, value)| {
                    (labels.get(label).map_or("", String::as_str) == value) == *equal
                })
        };
        let meant = data.iter().filter(|(labels, _)| is_meant(labels));
        meant
            .filter_map(|(labels, series)| Some((labels.clone(), of(series)?)))
            .collect()
    }

    fn samples(&self, data: &Data, time: i64) -> BTreeMap<Labels, Vec<(i64, f64)>> {
        let Self::Range(of, length, step) = self else {
            panic!("not a range: {self:?}");
        };
        let Some(step) = step else {
            let within = |series: &Series| Some(series.within(time - length, time));
            return of.select(data, within).into_iter().collect();
        };
        let mut found: BTreeMap<Labels, Vec<(i64, f64)>> = BTreeMap::new();
        let first = (time - length).div_euclid(*step) * step;
        for at in (0..).map(|n| first + n * step).take_while(|at| *at <= time) {
            if at < time - length {
                continue;
            }
            for (labels, value) in of.at(data, at) {
                found.entry(labels).or_default().push((at, value));
            }
        }
        found
    }
}

impl Series {
    fn at(&self, time: i64) -> Option<f64> {
        let (_, value) = self.0.range(time - LOOK_BACK + 1..=time).next_back()?;
        *value
    }

    fn within(&self, from: i64, to: i64) -> Vec<(i64, f64)> {
        let samples = self.0.range(from..=to);
        samples
            .filter_map(|(at, value)| Some((*at, (*value)?)))
            .collect()
    }
}

/// How much a counter grew, what lies between the samples and the ends of the range estimated.
fn increase(samples: &[(i64, f64)], from: i64, to: i64) -> Option<f64> {
    let ((first, start), (last, end)) = (*samples.first()?, *samples.last()?);
    if samples.len() < 2 {
        return None;
    }
    let resets = samples.windows(2).filter(|two| two[1].1 < two[0].1);
    let grown = end - start + resets.map(|two| two[0].1).sum::<f64>();
    let sampled = seconds(last - first);
    let average = sampled / f64::from(u32::try_from(samples.len() - 1).unwrap());
    let mut before = seconds(first - from);
    if grown > 0.0 && start >= 0.0 {
        before = before.min(sampled * (start / grown));
    }
    let mut covered = sampled;
    for missing in [before, seconds(to - last)] {
        covered += if missing < average * 1.1 {
            missing
        } else {
            average / 2.0
        };
    }
    Some(grown * covered / sampled)
}

fn slope(samples: &[(i64, f64)]) -> Option<f64> {
    let (first, _) = *samples.first()?;
    if samples.len() < 2 {
        return None;
    }
    let count = f64::from(u32::try_from(samples.len()).unwrap());
    let at = |sample: &(i64, f64)| seconds(sample.0 - first);
    let sum = |of: &dyn Fn(&(i64, f64)) -> f64| samples.iter().map(of).sum::<f64>();
    let (x, y) = (sum(&at), sum(&|sample| sample.1));
    let xy = sum(&|sample| at(sample) * sample.1) - x * y / count;
    let xx = sum(&|sample| at(sample) * at(sample)) - x * x / count;
    Some(xy / xx)
}

fn absent(of: &Expression, found: &[(Labels, f64)]) -> Vector {
    let Expression::Selector { matchers, .. } = of else {
        panic!("absent of what is no selector: {of:?}");
    };
    if !found.is_empty() {
        return Vec::new();
    }
    let equal = matchers.iter().filter(|(_, equal, _)| *equal);
    let labels = equal.map(|(label, _, value)| (label.clone(), value.clone()));
    vec![(labels.collect(), 1.0)]
}

fn aggregate(name: &str, by: &[String], vector: Vector) -> Vector {
    let mut groups: BTreeMap<Labels, f64> = BTreeMap::new();
    for (labels, value) in vector {
        let kept = labels.into_iter().filter(|(label, _)| by.contains(label));
        let group = groups.entry(kept.collect());
        match name {
            "sum" => *group.or_insert(0.0) += value,
            "max" => {
                let most = group.or_insert(value);
                *most = most.max(value);
            }
            _ => panic!("unknown aggregation {name}"),
        }
    }
    groups.into_iter().collect()
}

fn binary(operator: &str, left: Value, right: Value) -> Value {
    let (left, right) = match (left, right) {
        (Value::Number(left), Value::Number(right)) => {
            let (value, _) = calculate(operator, left, right);
            return Value::Number(value.expect("a comparison of numbers needs bool"));
        }
        (Value::Vector(left), Value::Number(right)) => {
            let each = left.into_iter().filter_map(|(labels, value)| {
                let (value, compares) = calculate(operator, value, right);
                Some((if compares { labels } else { nameless(labels) }, value?))
            });
            return Value::Vector(each.collect());
        }
        (Value::Number(left), Value::Vector(right)) => {
            let each = right.into_iter().filter_map(|(labels, value)| {
                let (result, compares) = calculate(operator, left, value);
                assert!(
                    !compares,
                    "compare a vector with a number the other way round"
                );
                Some((nameless(labels), result?))
            });
            return Value::Vector(each.collect());
        }
        (Value::Vector(left), Value::Vector(right)) => (left, right),
    };
    let of = |side: &Vector, labels: &Labels| {
        let wanted = nameless(labels.clone());
        let mut same = side
            .iter()
            .filter(|(other, _)| nameless(other.clone()) == wanted);
        same.next().map(|(_, value)| *value)
    };
    let set = |keep: bool, from: &Vector, other: &Vector| -> Vector {
        let kept = from
            .iter()
            .filter(|(labels, _)| of(other, labels).is_some() == keep);
        kept.cloned().collect()
    };
    Value::Vector(match operator {
        "and" => set(true, &left, &right),
        "or" => [left.clone(), set(false, &right, &left)].concat(),
        _ => {
            let each = left.into_iter().filter_map(|(labels, value)| {
                let (value, compares) = calculate(operator, value, of(&right, &labels)?);
                Some((if compares { labels } else { nameless(labels) }, value?))
            });
            each.collect()
        }
    })
}

/// The result, `None` where a comparison does not hold; and whether it is one.
fn calculate(operator: &str, left: f64, right: f64) -> (Option<f64>, bool) {
    let holds = |holds: bool| (holds.then_some(left), true);
    #[expect(clippy::float_cmp, reason = "as Prometheus does")]
    match operator {
        "*" => (Some(left * right), false),
        "/" => (Some(left / right), false),
        "==" => holds(left == right),
        ">" => holds(left > right),
        "<" => holds(left < right),
        _ => panic!("unknown operator {operator}"),
    }
}

fn nameless(mut labels: Labels) -> Labels {
    labels.remove(NAME);
    labels
}

fn seconds(seconds: i64) -> f64 {
    f64::from(i32::try_from(seconds).unwrap())
}

fn tokens(text: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_.:".contains(c);
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first == '"' {
            2 + rest[1..].find('"').expect("a string that ends")
        } else if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("==") || rest.starts_with("!=") {
            2
        } else {
            1
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    tokens
}

struct Parser {
    tokens: Vec<String>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", String::as_str)
    }

    fn next(&mut self) -> String {
        let token = self.peek().to_owned();
        assert!(!token.is_empty(), "the expression ends too early");
        self.at += 1;
        token
    }

    fn skip(&mut self, token: &str) -> bool {
        let is_next = self.peek() == token;
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, token: &str) {
        let found = self.next();
        assert_eq!(found, token);
    }

    fn binary(&mut self, least: usize) -> Expression {
        const LEVELS: [&[&str]; 4] = [&["or"], &["and"], &["==", ">", "<"], &["*", "/"]];
        let Some(operators) = LEVELS.get(least) else {
            return self.operand();
        };
        let mut left = self.binary(least + 1);
        while operators.contains(&self.peek()) {
            let operator = self.next();
            let right = self.binary(least + 1);
            left = Expression::Binary(operator, Box::new(left), Box::new(right));
        }
        left
    }

    fn operand(&mut self) -> Expression {
        let token = self.next();
        let mut operand = if token == "(" {
            let inner = self.binary(0);
            self.expect(")");
            inner
        } else if let Ok(number) = token.parse() {
            Expression::Number(number)
        } else if ["sum", "max"].contains(&token.as_str()) {
            let by = self.skip("by");
            let by = if by { self.names() } else { Vec::new() };
            Expression::Aggregate(token, by, self.argument())
        } else if self.peek() == "(" {
            Expression::Call(token, self.argument())
        } else {
            self.selector(token)
        };
        if self.skip("[") {
            let range = self.next();
            let (length, step) = match range.split_once(':') {
                Some((length, step)) => (length, Some(duration(step))),
                None => (range.as_str(), None),
            };
            operand = Expression::Range(Box::new(operand), duration(length), step);
            self.expect("]");
        }
        operand
    }

    fn argument(&mut self) -> Box<Expression> {
        self.expect("(");
        let inner = self.binary(0);
        self.expect(")");
        Box::new(inner)
    }

    fn names(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        self.expect("(");
        while !self.skip(")") {
            names.push(self.next());
            self.skip(",");
        }
        names
    }

    fn selector(&mut self, name: String) -> Expression {
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        assert!(is_name, "unknown token {name}");
        let mut matchers = Vec::new();
        if self.skip("{") {
            while !self.skip("}") {
                let label = self.next();
                let equal = match self.next().as_str() {
                    "=" => true,
                    "!=" => false,
                    other => panic!("unknown matcher {other}"),
                };
                let value = self.next().trim_matches('"').to_owned();
                matchers.push((label, equal, value));
                self.skip(",");
            }
        }
        Expression::Selector { name, matchers }
    }
}

/// Seconds of a duration such as `5m`.
pub fn duration(text: &str) -> i64 {
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        _ => panic!("unknown duration {text}"),
    };
    unit * text[..text.len() - 1].parse::<i64>().unwrap()
}
