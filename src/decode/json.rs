//! Picks the mapped fields out of a JSON object in one pass, without building a tree of what is not
//! needed. Must not know what the fields mean; `mod.rs` checks their types.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::DecodeError;
use super::fields::{Field, FieldValue, Fields};
use super::pointers::FieldPointers;
use crate::keys::Violation;

/// How `serde_json` names the only member of an object that stands for unparsed text.
const RESERVED_NAME: &str = "$serde_json::private::RawValue";

/// Longest pointer in bytes.
const LONGEST_POINTER_BYTES: usize = 512;

/// Fields inside the value of one key, each behind these steps.
type Inner = Vec<(Field, Vec<String>)>;

/// What to do with the value of one key at the top of a record.
#[derive(Debug, Clone)]
enum Target {
    /// The value is the field: the fast path.
    Whole(Field),
    /// Fields stand inside.
    Inside(Inner),
}

/// Compiled pointers.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    targets: Vec<(String, Target)>,
    pointers: FieldPointers,
    keep_unmapped: bool,
}

impl Mapping {
    /// Compiles `pointers`; the error lists all that are no JSON pointers.
    pub(super) fn new(
        pointers: &FieldPointers,
        keep_unmapped: bool,
    ) -> Result<Self, Vec<Violation>> {
        let mut violations = Vec::new();
        let mut inside: Vec<(String, Inner)> = Vec::new();
        for field in Field::ALL {
            let pointer = field.configured(pointers);
            if pointer.is_empty() {
                continue;
            }
            let Some((first, rest)) = steps(pointer) else {
                violations.push(Violation::new(
                    &format!("fields.{}", field.name()),
                    pointer,
                    "a JSON pointer such as \"/title\" or \"/meta/author\" (`~1` for `/`, `~0` for `~` in a name), or \"\" for none",
                ));
                continue;
            };
            match inside.iter_mut().find(|(name, _)| *name == first) {
                Some((_, fields)) => fields.push((field, rest)),
                None => inside.push((first, vec![(field, rest)])),
            }
        }
        if !violations.is_empty() {
            return Err(violations);
        }
        let targets = inside.into_iter().map(|(name, fields)| {
            let target = match fields.as_slice() {
                [(field, rest)] if rest.is_empty() => Target::Whole(*field),
                _ => Target::Inside(fields),
            };
            (name, target)
        });
        Ok(Self {
            targets: targets.collect(),
            pointers: pointers.clone(),
            keep_unmapped,
        })
    }

    /// The pointer of a field as configured.
    pub(super) fn pointer(&self, field: Field) -> &str {
        field.configured(&self.pointers)
    }

    /// Whether what is not mapped is kept.
    pub(super) fn keeps_unmapped(&self) -> bool {
        self.keep_unmapped
    }

    /// Reads the fields of one JSON object; of a key that stands twice the last value wins. Of attributes and what is
    /// not mapped at most so many values are kept; all are checked.
    pub(super) fn read<'a>(
        &self,
        text: &'a str,
        most_values: usize,
    ) -> Result<Fields<'a>, DecodeError> {
        if !text.trim_start().starts_with('{') {
            return Err(not_an_object(text));
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let reader = ReadFields {
            mapping: self,
            most_values,
        };
        let fields = reader
            .deserialize(&mut deserializer)
            .map_err(|error| DecodeError::of_json(&error))?;
        deserializer
            .end()
            .map_err(|error| DecodeError::of_json(&error))?;
        Ok(fields)
    }

    fn target(&self, name: &str) -> Option<&Target> {
        self.targets
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, target)| target)
    }
}

/// The steps of an RFC 6901 pointer: the first and the rest.
fn steps(pointer: &str) -> Option<(String, Vec<String>)> {
    if pointer.len() > LONGEST_POINTER_BYTES {
        return None;
    }
    let unescape = |step: &str| {
        let escapes_are_right = step
            .split('~')
            .skip(1)
            .all(|after| after.starts_with(['0', '1']));
        escapes_are_right.then(|| step.replace("~1", "/").replace("~0", "~"))
    };
    let mut steps = pointer.strip_prefix('/')?.split('/').map(unescape);
    let first = steps.next()??;
    Some((first, steps.collect::<Option<_>>()?))
}

/// Why `text`, which does not begin with a brace, is refused.
pub(super) fn not_an_object(text: &str) -> DecodeError {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        return DecodeError::of_json(&error);
    }
    let found = match text.trim_start().bytes().next() {
        Some(b'[') => "an array",
        Some(b'"') => "a text",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        _ => "a number",
    };
    DecodeError::NotAnObject { found }
}

/// Refuses JSON nested more than `limit` deep before a recursive parser sees it.
pub(super) fn check_depth(text: &str, limit: usize) -> Result<(), DecodeError> {
    let mut depth = 0_usize;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return Err(DecodeError::TooDeep { limit });
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(inner) = bytes.next() {
                    match inner {
                        b'\\' => {
                            bytes.next();
                        }
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads a whole record.
struct ReadFields<'m> {
    mapping: &'m Mapping,
    most_values: usize,
}

impl<'de> DeserializeSeed<'de> for ReadFields<'_> {
    type Value = Fields<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ReadFields<'_> {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        let most = self.most_values;
        while let Some(name) = map.next_key_seed(ReadName)? {
            match self.mapping.target(&name) {
                Some(Target::Whole(Field::Attributes)) => {
                    let value = match map.next_value_seed(ReadTree {
                        values: &mut fields.tree_values,
                        most,
                    })? {
                        Value::Null => FieldValue::Absent,
                        tree => FieldValue::Tree(tree),
                    };
                    fields.set(Field::Attributes, value);
                }
                Some(Target::Whole(field)) => {
                    let value = map.next_value_seed(ReadValue)?;
                    fields.set(*field, value);
                }
                Some(Target::Inside(wanted)) => {
                    let tree = map.next_value_seed(ReadTree {
                        values: &mut 0,
                        most: usize::MAX,
                    })?;
                    let rest = pick(&mut fields, wanted, tree);
                    fields.unmapped.remove(name.as_ref());
                    if let (true, Some(rest)) = (self.mapping.keep_unmapped, rest) {
                        fields.tree_values += count(&rest);
                        if fields.tree_values <= most {
                            fields.unmapped.insert(name.into_owned(), rest);
                        }
                    }
                }
                None if self.mapping.keep_unmapped => {
                    let value = map.next_value_seed(ReadTree {
                        values: &mut fields.tree_values,
                        most,
                    })?;
                    if fields.tree_values <= most {
                        fields.unmapped.insert(name.into_owned(), value);
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

/// Takes the wanted fields out of `tree`; what remains is the answer, if anything does.
fn pick(
    fields: &mut Fields<'_>,
    wanted: &[(Field, Vec<String>)],
    mut tree: Value,
) -> Option<Value> {
    for (field, path) in wanted {
        let found = path
            .iter()
            .try_fold(&tree, |value, step| child(value, step));
        if *field == Field::Attributes {
            fields.tree_values += found.map_or(0, count);
        }
        let value = found.map_or(FieldValue::Absent, |value| {
            FieldValue::of_tree(value, *field)
        });
        fields.set(*field, value);
    }
    for (_, path) in wanted {
        let (last, parents) = path.split_last()?;
        // Entries of arrays stay: taking one out would move the others.
        let parent = parents
            .iter()
            .try_fold(&mut tree, |value, step| match value {
                Value::Object(object) => object.get_mut(step),
                _ => None,
            });
        if let Some(Value::Object(object)) = parent {
            object.remove(last);
        }
    }
    match &tree {
        Value::Null => None,
        Value::Object(object) if object.is_empty() => None,
        _ => Some(tree),
    }
}

fn child<'v>(value: &'v Value, step: &str) -> Option<&'v Value> {
    match value {
        Value::Object(object) => object.get(step),
        Value::Array(array) => {
            let plain = step == "0" || !step.starts_with(['0', '+']);
            array.get(step.parse::<usize>().ok().filter(|_| plain)?)
        }
        _ => None,
    }
}

/// Values of a tree, itself included. Recursion ends: what is read is no deeper than `check_depth` allows.
fn count(tree: &Value) -> usize {
    1 + match tree {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Reads a tree as `Value` does, and counts its values. What goes beyond the bound is read the same way, so that it is
/// just as valid, and dropped.
struct ReadTree<'c> {
    values: &'c mut usize,
    most: usize,
}

impl ReadTree<'_> {
    fn is_full(&self) -> bool {
        *self.values > self.most
    }

    /// A reader of what stands inside.
    fn inner(&mut self) -> ReadTree<'_> {
        ReadTree {
            values: self.values,
            most: self.most,
        }
    }
}

impl<'de> DeserializeSeed<'de> for ReadTree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        *self.values += 1;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ReadTree<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        let kept = if self.is_full() { "" } else { text };
        Ok(kept.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner())? {
            if self.is_full() {
                items = Vec::new();
            } else {
                items.push(item);
            }
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key_seed(ReadName)? {
            let value = map.next_value_seed(self.inner())?;
            if self.is_full() {
                members = Map::new();
            } else {
                members.insert(name.into_owned(), value);
            }
        }
        Ok(Value::Object(members))
    }
}

/// Reads a name, borrowed where it has no escapes.
struct ReadName;

impl<'de> DeserializeSeed<'de> for ReadName {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for ReadName {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        unreserved(text).map(Cow::Borrowed)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        unreserved(text).map(|name| Cow::Owned(name.to_owned()))
    }
}

/// Rejects a name that the parser keeps for itself: whoever reads the payload again, as the embedded store's
/// engine does, would take its value for JSON text, of any depth or none.
fn unreserved<E: serde::de::Error>(name: &str) -> Result<&str, E> {
    if name == RESERVED_NAME {
        return Err(E::custom(format_args!(
            "the name {name:?} is reserved; give the field another one"
        )));
    }
    Ok(name)
}

/// Reads a field's value; arrays and objects are skipped, only their kind is kept.
struct ReadValue;

impl<'de> DeserializeSeed<'de> for ReadValue {
    type Value = FieldValue<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ReadValue {
    type Value = FieldValue<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(FieldValue::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(FieldValue::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(FieldValue::Absent)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(FieldValue::Other("true or false"))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(FieldValue::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(FieldValue::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        let finite = Number::from_f64(number);
        Ok(finite.map_or(FieldValue::Other("not a finite number"), FieldValue::Number))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(FieldValue::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(FieldValue::Other("an object"))
    }
}
