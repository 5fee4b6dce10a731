//! Where a value came from, as the value itself carries it.

use config::{Value, ValueKind};

/// What environment variables begin with; `TCBERT__KAFKA__TOPIC` is `kafka.topic`.
pub(super) const PREFIX: &str = "TCBERT__";
/// How the origin of a variable's value begins.
pub(super) const OF_VARIABLE: &str = "the environment variable ";

/// Tables carry no origin of their own; what stands in them does.
pub(super) fn origin_of(value: Option<&Value>) -> String {
    value
        .and_then(|value| first_leaf(value).origin())
        .unwrap_or("the built-in defaults")
        .to_owned()
}

fn first_leaf(value: &Value) -> &Value {
    match &value.kind {
        ValueKind::Table(table) => table.values().next().map_or(value, first_leaf),
        _ => value,
    }
}

/// Whether a value is a variable's, which holds text whatever its key takes.
pub(super) fn from_environment(value: &Value) -> bool {
    value
        .origin()
        .is_some_and(|origin| origin.starts_with(OF_VARIABLE))
}
