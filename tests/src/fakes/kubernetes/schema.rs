//! What an object's JSON becomes when the API server has decoded it and written it again.
//!
//! A client is told much by what is *not* there: an empty list of rules is stored as no list, a selector that is null as one
//! that selects everything, a misspelt field is dropped with no more than a warning. All of this follows from how the server
//! reads JSON into structs of Go and writes these, and so the structs are described here ([`types::TYPES`]) and one walk does
//! it for every kind. Custom resources are read in another way and have [`super::custom`].

mod strict;
mod types;

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use serde_json::{Map, Value};

pub use strict::{Parsed, parse};

/// How a value of Go is read and written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Type {
    Text,
    /// A string with a name of its own.
    Named(&'static str),
    /// 32 or 64 bits.
    Int(&'static str),
    Bool,
    Any,
    IntOrText,
    Quantity,
    Time,
    MicroTime,
    Struct(&'static str),
    List(Box<Type>),
    Map(Box<Type>),
    Pointer(Box<Type>),
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    ty: Type,
    /// Written even when it is empty (no `omitempty`).
    always: bool,
}

static STRUCTS: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    types::TYPES
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, fields)| {
            let fields = fields.split(", ").filter_map(|field| {
                let (name, ty) = field.trim().split_once(' ')?;
                let always = ty.ends_with('!');
                Some(Field { name, ty: Type::parse(ty.trim_end_matches('!')), always })
            });
            (name.trim(), fields.collect())
        })
        .collect()
});

impl Type {
    fn parse(text: &'static str) -> Self {
        if let Some(inner) = text.strip_prefix('*') {
            return Self::Pointer(Box::new(Self::parse(inner)));
        }
        if let Some(inner) = text.strip_prefix("[]") {
            return Self::List(Box::new(Self::parse(inner)));
        }
        if let Some(inner) = text.strip_prefix("map[string]") {
            return Self::Map(Box::new(Self::parse(inner)));
        }
        match text {
            "string" => Self::Text,
            "int32" | "int64" => Self::Int(text),
            "bool" => Self::Bool,
            "any" => Self::Any,
            "IntOrString" => Self::IntOrText,
            "Quantity" => Self::Quantity,
            "Time" => Self::Time,
            "MicroTime" => Self::MicroTime,
            _ => text.strip_prefix('~').map_or(Self::Struct(text), Self::Named),
        }
    }

    /// What is written for nothing, where something has to be.
    fn zero(&self) -> Value {
        match self {
            Self::Text | Self::Named(_) => Value::from(""),
            Self::Int(_) | Self::IntOrText => Value::from(0),
            Self::Quantity => Value::from("0"),
            Self::Bool => Value::from(false),
            Self::Struct(_) => Value::Object(Map::new()),
            Self::Any | Self::Time | Self::MicroTime | Self::List(_) | Self::Map(_) | Self::Pointer(_) => {
                Value::Null
            }
        }
    }
}

/// The name in Go, as its decoder says it.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("string"),
            Self::Named(name) | Self::Struct(name) => write!(f, "v1.{name}"),
            Self::Int(name) => f.write_str(name),
            Self::IntOrText => f.write_str("int32"),
            Self::Bool => f.write_str("bool"),
            Self::Any => f.write_str("interface {}"),
            Self::Quantity => f.write_str("resource.Quantity"),
            Self::Time => f.write_str("v1.Time"),
            Self::MicroTime => f.write_str("v1.MicroTime"),
            Self::List(inner) => write!(f, "[]{inner}"),
            Self::Map(inner) => write!(f, "map[string]{inner}"),
            Self::Pointer(inner) => inner.fmt(f),
        }
    }
}

/// What was odd about an object that could be read.
#[derive(Debug, Default)]
pub struct Oddities {
    /// Paths of fields that no one knows.
    pub unknown: Vec<String>,
}

/// Reads an object of a kind; what comes back has neither `kind` nor `apiVersion`.
///
/// # Errors
/// A value of a type that the field does not have, in the words of Go's decoder.
pub fn decode(kind: &str, object: &Value, oddities: &mut Oddities) -> Result<Value, String> {
    let mut walk = Walk { path: String::new(), oddities };
    let Some((name, _)) = STRUCTS.get_key_value(kind) else {
        return Err(format!("no kind \"{kind}\" is registered"));
    };
    Ok(walk.value(&Type::Struct(name), kind, object)?.unwrap_or_else(|| Value::Object(Map::new())))
}

struct Walk<'a> {
    path: String,
    oddities: &'a mut Oddities,
}

impl Walk<'_> {
    /// Reads a value within the struct `within`; none if it is the empty one of its type.
    fn value(&mut self, ty: &Type, within: &str, value: &Value) -> Result<Option<Value>, String> {
        Ok(match (ty, value) {
            (Type::Struct(name), Value::Null) => Some(self.fields(name, &Map::new())?),
            (Type::Struct(name), Value::Object(object)) => Some(self.fields(name, object)?),
            (_, Value::Null) => None,
            (Type::Pointer(inner), _) => {
                Some(self.value(inner, within, value)?.unwrap_or_else(|| inner.zero()))
            }
            (Type::Text | Type::Named(_), Value::String(text)) => (!text.is_empty()).then(|| value.clone()),
            (Type::Bool, Value::Bool(yes)) => yes.then_some(Value::Bool(true)),
            (Type::Int(_), Value::Number(n)) if n.is_i64() => (n.as_i64() != Some(0)).then(|| value.clone()),
            (Type::IntOrText, Value::Number(n)) if n.is_i64() => Some(value.clone()),
            (Type::Any, _) | (Type::IntOrText | Type::Quantity, Value::String(_)) => Some(value.clone()),
            (Type::Quantity, Value::Number(n)) => Some(Value::from(n.to_string())),
            (Type::Time, Value::String(text)) => {
                time(text, false)?;
                Some(value.clone())
            }
            (Type::MicroTime, Value::String(text)) => {
                time(text, true)?;
                Some(value.clone())
            }
            (Type::List(inner), Value::Array(items)) => {
                let mut list = Vec::with_capacity(items.len());
                let at = self.path.len();
                for (i, item) in items.iter().enumerate() {
                    self.path.push_str(&format!("[{i}]"));
                    list.push(self.value(inner, within, item)?.unwrap_or_else(|| inner.zero()));
                    self.path.truncate(at);
                }
                (!list.is_empty()).then_some(Value::Array(list))
            }
            (Type::Map(inner), Value::Object(entries)) => {
                let mut map = Map::new();
                for (key, entry) in entries {
                    map.insert(
                        key.clone(),
                        self.value(inner, within, entry)?.unwrap_or_else(|| inner.zero()),
                    );
                }
                (!map.is_empty()).then_some(Value::Object(map))
            }
            _ => return Err(self.mismatch(ty, within, value)),
        })
    }

    fn fields(&mut self, name: &'static str, object: &Map<String, Value>) -> Result<Value, String> {
        let Some(fields) = STRUCTS.get(name) else {
            return Err(format!("no struct \"{name}\" is described"));
        };
        let at = self.path.len();
        for key in object.keys() {
            let of_type = at == 0 && (key == "kind" || key == "apiVersion");
            if !of_type && !fields.iter().any(|field| field.name == key) {
                let dot = if at == 0 { "" } else { "." };
                self.oddities.unknown.push(format!("{}{dot}{key}", self.path));
            }
        }
        let mut written = Map::new();
        for field in fields {
            if at > 0 {
                self.path.push('.');
            }
            self.path.push_str(field.name);
            let value = object.get(field.name).unwrap_or(&Value::Null);
            let value = self.value(&field.ty, name, value)?;
            self.path.truncate(at);
            let always = field.always || matches!(field.ty, Type::Time | Type::MicroTime);
            if let Some(value) = value.or_else(|| always.then(|| field.ty.zero())) {
                written.insert(field.name.into(), value);
            }
        }
        Ok(Value::Object(written))
    }

    fn mismatch(&self, ty: &Type, within: &str, value: &Value) -> String {
        let found = match value {
            Value::Null => "null".into(),
            Value::Bool(_) => "bool".into(),
            Value::Number(n) if matches!(ty, Type::Int(_) | Type::IntOrText) => format!("number {n}"),
            Value::Number(_) => "number".into(),
            Value::String(_) => "string".into(),
            Value::Array(_) => "array".into(),
            Value::Object(_) => "object".into(),
        };
        let mut path = String::new();
        let mut index = false;
        for c in self.path.chars() {
            index = c == '[' || (index && c != ']');
            if !index && c != ']' {
                path.push(c);
            }
        }
        format!("json: cannot unmarshal {found} into Go struct field {within}.{path} of type {ty}")
    }
}

/// Is this a time as the API writes it? `micro`: six digits of a fraction, which must be there.
pub(super) fn time(text: &str, micro: bool) -> Result<(), String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let mut rest = text;
    let refuse = |rest: &str, what: &str| {
        Err(format!("parsing time \"{text}\" as \"{layout}\": cannot parse \"{rest}\" as \"{what}\""))
    };
    let clock = ["2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05"];
    for part in clock {
        let taken = if part.as_bytes()[0].is_ascii_digit() {
            let width = part.len();
            rest.get(..width).filter(|d| d.bytes().all(|b| b.is_ascii_digit())).map(str::len)
        } else {
            rest.starts_with(part).then_some(1)
        };
        match taken {
            Some(n) => rest = &rest[n..],
            None => return refuse(rest, part),
        }
    }
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    if micro {
        match rest.strip_prefix('.') {
            Some(fraction) if digits(fraction) == 6 => rest = &fraction[6..],
            _ => return refuse(rest, ".000000"),
        }
    } else if let Some(fraction) = rest.strip_prefix('.') {
        rest = &fraction[digits(fraction)..];
    }
    let zone = rest.as_bytes();
    let offset = zone.len() == 6 && matches!(zone[0], b'+' | b'-') && zone[3] == b':';
    if rest == "Z" || offset { Ok(()) } else { refuse(rest, "Z07:00") }
}
