//! A configuration value before it has a meaning, with the line where it stands; YAML today, other notations later.

/// Is a value and its place.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(in crate::config) struct Node {
    /// The line, from 1, where the notation knows lines.
    pub(in crate::config) line: Option<usize>,
    pub(in crate::config) value: Value,
}

/// Is what was written, read without coercion.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(in crate::config) enum Value {
    /// Nothing: the key counts as absent.
    Null,
    Bool(bool),
    /// As it was written.
    Number(String),
    /// An unquoted `yes`, `no`, `on` or `off`, which some readers take for a boolean.
    Ambiguous,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Name, Node)>),
}

/// Is the name of an entry and its place; names are unique in their map.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(in crate::config) struct Name {
    pub(in crate::config) text: String,
    pub(in crate::config) line: Option<usize>,
}

impl Value {
    /// Describes what was found, without repeating it: it may be a secret.
    pub(in crate::config) const fn description(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Ambiguous => "an unquoted word that some readers take for a boolean",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// Tells whether quotes would make text of it.
    pub(in crate::config) const fn lacks_quotes(&self) -> bool {
        matches!(self, Self::Bool(_) | Self::Number(_) | Self::Ambiguous)
    }
}
