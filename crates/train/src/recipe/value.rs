//! From a TOML table to a typed recipe, keeping the dotted path of whatever goes wrong.
//!
//! serde hands an error type the unknown key together with the keys it would have taken, and the types it
//! found and wanted. Most error types flatten that into text; [`Fault`] keeps it, and each table on the
//! way out adds its key, so a message can say `optimizer.wieght_decay` and suggest `weight_decay`.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use toml::{Table, Value};

use super::RecipeError;

/// Reads `T` out of a table; errors carry full paths.
pub(super) fn from_table<T: DeserializeOwned>(table: Table) -> Result<T, RecipeError> {
    T::deserialize(Node(Value::Table(table))).map_err(Fault::into_error)
}

/// An error on its way out of nested tables: innermost key first.
#[derive(Debug)]
struct Fault {
    path: Vec<String>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    UnknownKey(&'static [&'static str]),
    UnknownVariant(String, &'static [&'static str]),
    Missing,
    WrongType { expected: String, found: String },
    Other(String),
}

impl Fault {
    fn new(kind: Kind) -> Self {
        let path = Vec::new();
        Fault { path, kind }
    }

    fn at(key: &str, kind: Kind) -> Self {
        Fault::new(kind).inside(key)
    }

    fn inside(mut self, key: &str) -> Self {
        self.path.push(key.to_owned());
        self
    }

    fn into_error(self) -> RecipeError {
        let outermost_first: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        let key = outermost_first.join(".");
        match self.kind {
            Kind::UnknownKey(known) => {
                let section = &outermost_first[..outermost_first.len() - 1];
                unknown_key(&section.join("."), &self.path[0], known)
            }
            Kind::UnknownVariant(given, known) => {
                let hint = match nearest(&given, known) {
                    Some(near) => format!("; did you mean \"{near}\"?"),
                    None => String::new(),
                };
                let expected = format!("one of {}", quoted(known));
                let found = format!("\"{given}\"{hint}");
                RecipeError::WrongType { key, expected, found }
            }
            Kind::Missing => RecipeError::Missing { key },
            Kind::WrongType { expected, found } => RecipeError::WrongType { key, expected, found },
            Kind::Other(problem) => RecipeError::invalid(key, problem),
        }
    }
}

fn quoted(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    quoted.join(", ")
}

/// The error for a key that its section (dotted, empty at the top) does not have.
pub(super) fn unknown_key(section: &str, key: &str, known: &[&str]) -> RecipeError {
    let full = |name: &str| if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    RecipeError::UnknownKey {
        key: full(key),
        nearest: nearest(key, known).map(full),
        known: known.iter().map(|name| name.to_string()).collect(),
    }
}

/// The known name that `given` most likely means: at most a third of its letters differ.
fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |name: &str| strsim::damerau_levenshtein(given, name);
    let near = *known.iter().min_by_key(|name| distance(name))?;
    let letters = given.chars().count().max(near.chars().count());
    (distance(near) <= letters.div_ceil(3)).then_some(near)
}

/// serde names Rust types; a recipe's reader wants words.
fn in_words(expected: &str) -> String {
    match expected {
        "f32" | "f64" => "a number".into(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "a boolean" => "true or false".into(),
        "a map" => "a section".into(),
        "a sequence" => "a list".into(),
        struct_name if struct_name.starts_with("struct ") => "a section".into(),
        other => other.into(),
    }
}

fn found_in_words(found: Unexpected) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Float(value) => format!("{value:?}"),
        Unexpected::Str(text) => format!("\"{text}\""),
        Unexpected::Map => "a section".into(),
        Unexpected::Seq => "a list".into(),
        other => other.to_string(),
    }
}

impl Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Fault::new(Kind::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected, expected: &dyn Expected) -> Self {
        Fault::new(Kind::WrongType { expected: in_words(&expected.to_string()), found: found_in_words(found) })
    }

    fn invalid_value(found: Unexpected, expected: &dyn Expected) -> Self {
        Fault::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Fault::new(Kind::UnknownVariant(variant.to_owned(), expected))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Fault::at(field, Kind::UnknownKey(expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Fault::at(field, Kind::Missing)
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.kind, self.path)
    }
}

/// One TOML value as serde sees it.
struct Node(Value);

impl<'de> Deserializer<'de> for Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(number) => visitor.visit_i64(number),
            Value::Float(number) => visitor.visit_f64(number),
            Value::Boolean(flag) => visitor.visit_bool(flag),
            Value::Datetime(date) => visitor.visit_string(date.to_string()),
            Value::Array(values) => visitor.visit_seq(Items { values: values.into_iter(), index: 0 }),
            Value::Table(table) => visitor.visit_map(Entries::of(table)),
        }
    }

    /// A key that is there has a value: TOML has no null.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.0 {
            Value::String(variant) => visitor.visit_enum(variant.into_deserializer()),
            Value::Table(table) => visitor.visit_enum(MapAccessDeserializer::new(Entries::of(table))),
            other => Node(other).deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// The keys of a table, each read under its name.
struct Entries {
    entries: toml::map::IntoIter<String, Value>,
    current: Option<(String, Value)>,
}

impl Entries {
    fn of(table: Table) -> Self {
        Entries { entries: table.into_iter(), current: None }
    }
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.current = self.entries.next();
        let Some((key, _)) = &self.current else {
            return Ok(None);
        };
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, value) = self.current.take().expect("serde asks for the key first");
        seed.deserialize(Node(value)).map_err(|fault| fault.inside(&key))
    }
}

/// The values of a list, each read under its index.
struct Items {
    values: std::vec::IntoIter<Value>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(value) = self.values.next() else {
            return Ok(None);
        };
        let index = self.index;
        self.index += 1;
        seed.deserialize(Node(value)).map(Some).map_err(|fault| fault.inside(&index.to_string()))
    }
}
