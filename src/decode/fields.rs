//! The fields of a record before their types are checked.
//! Must not know where they stand in a record; `json.rs` finds them.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

use super::pointers::FieldPointers;

/// The fields that a pointer can be given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Id,
    Title,
    Text,
    PublishedAt,
    Source,
    Language,
    Attributes,
}

impl Field {
    pub(super) const ALL: [Self; 7] = [
        Self::Id,
        Self::Title,
        Self::Text,
        Self::PublishedAt,
        Self::Source,
        Self::Language,
        Self::Attributes,
    ];

    /// Its key below `decode.fields`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Title => "title",
            Self::Text => "text",
            Self::PublishedAt => "published_at",
            Self::Source => "source",
            Self::Language => "language",
            Self::Attributes => "attributes",
        }
    }

    /// Its pointer as configured; empty for none.
    pub(super) fn configured(self, pointers: &FieldPointers) -> &str {
        match self {
            Self::Id => &pointers.id,
            Self::Title => &pointers.title,
            Self::Text => &pointers.text,
            Self::PublishedAt => &pointers.published_at,
            Self::Source => &pointers.source,
            Self::Language => &pointers.language,
            Self::Attributes => &pointers.attributes,
        }
    }
}

/// What stands at a field's pointer.
#[derive(Debug, Default)]
pub(super) enum FieldValue<'a> {
    /// Nothing, or `null`.
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Number(Number),
    /// A value that no field but the attributes accepts; only its kind is kept.
    Other(&'static str),
    /// The whole value: for the attributes.
    Tree(Value),
}

impl FieldValue<'_> {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Absent => "missing",
            Self::Text(_) => "text",
            Self::Number(number) if number.is_f64() => {
                "a number with a fraction, or beyond 64 bits"
            }
            Self::Number(_) => "a number",
            Self::Other(kind) => kind,
            Self::Tree(value) => kind_of(value),
        }
    }

    /// The value of `field` out of a tree.
    pub(super) fn of_tree(value: &Value, field: Field) -> Self {
        match value {
            Value::Null => Self::Absent,
            other if field == Field::Attributes => Self::Tree(other.clone()),
            Value::String(text) => Self::Text(Cow::Owned(text.clone())),
            Value::Number(number) => Self::Number(number.clone()),
            other => Self::Other(kind_of(other)),
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The fields of one record.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    values: [FieldValue<'a>; Field::ALL.len()],
    /// What no pointer names, by its name at the top.
    pub(super) unmapped: Map<String, Value>,
    /// Values that the attributes and what no pointer names have together. Above the bound of the reader they do not
    /// hold all of them.
    pub(super) tree_values: usize,
}

impl<'a> Fields<'a> {
    /// A record that is nothing but a text.
    pub(super) fn of_text(text: Cow<'a, str>) -> Self {
        let mut fields = Self::default();
        fields.set(Field::Text, FieldValue::Text(text));
        fields
    }

    /// Moves a field's value out.
    pub(super) fn take(&mut self, field: Field) -> FieldValue<'a> {
        self.values
            .get_mut(field as usize)
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Sets a field's value; an earlier one is gone.
    pub(super) fn set(&mut self, field: Field, value: FieldValue<'a>) {
        if let Some(slot) = self.values.get_mut(field as usize) {
            *slot = value;
        }
    }
}
