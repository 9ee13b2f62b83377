//! Places where a rule does not hold, each with its reason, from `xtask/tidy.toml`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

use super::Problem;

/// The list's path below the workspace root.
pub const FILE: &str = "xtask/tidy.toml";

/// The exceptions, and which of them were needed.
#[derive(Debug, Default)]
pub struct Exceptions {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    rule: Rule,
    file: String,
    /// Empty where the rule is about whole files.
    function: String,
    used: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    LongFunction,
    UnsafeCode,
    WallClock,
}

impl Exceptions {
    /// Reads the list; a missing file, an unknown rule or an entry without a reason is an error.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {FILE}"))
    }

    /// Parses the list's text.
    pub fn parse(text: &str) -> Result<Self> {
        let table: Table = text.parse()?;
        let mut entries = Vec::new();
        for (name, list) in &table {
            let rule = match name.as_str() {
                "long_function" => Rule::LongFunction,
                "unsafe_code" => Rule::UnsafeCode,
                "wall_clock" => Rule::WallClock,
                _ => bail!("`{name}` is no rule; known are long_function, unsafe_code and wall_clock"),
            };
            let list = list.as_array().context("write each exception as [[rule]]")?;
            for value in list {
                entries.push(Entry::parse(rule, value)?);
            }
        }
        Ok(Exceptions { entries })
    }

    /// Whether `function` in `file` may be long.
    pub fn allow_long_function(&mut self, file: &str, function: &str) -> bool {
        self.allow(Rule::LongFunction, file, function)
    }

    /// Whether `file` may hold unsafe code.
    pub fn allow_unsafe_code(&mut self, file: &str) -> bool {
        self.allow(Rule::UnsafeCode, file, "")
    }

    /// Whether `file` of a numeric crate may read a clock.
    pub fn allow_wall_clock(&mut self, file: &str) -> bool {
        self.allow(Rule::WallClock, file, "")
    }

    /// Exceptions that nothing needed: the code became better than the list.
    pub fn unused(&self) -> Vec<Problem> {
        let unused = self.entries.iter().filter(|entry| !entry.used);
        unused
            .map(|entry| {
                let what = format!("{:?} {} {}", entry.rule, entry.file, entry.function);
                Problem::new(FILE, 0, format!("nothing needs `{}`; delete it", what.trim()))
            })
            .collect()
    }

    fn allow(&mut self, rule: Rule, file: &str, function: &str) -> bool {
        let wanted = (rule, file, function);
        let mut entries = self.entries.iter_mut();
        let found = entries.find(|entry| (entry.rule, &*entry.file, &*entry.function) == wanted);
        found.map(|entry| entry.used = true).is_some()
    }
}

impl Entry {
    fn parse(rule: Rule, value: &Value) -> Result<Self> {
        let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or("").trim();
        let (file, function) = (field("file"), field("function"));
        ensure!(!file.is_empty(), "an exception names its `file`");
        ensure!(
            (rule == Rule::LongFunction) != function.is_empty(),
            "{file}: long_function names a `function`, other rules do not"
        );
        ensure!(field("reason").split_whitespace().count() > 1, "{file} {function}: an exception states its `reason`");
        Ok(Entry { rule, file: file.to_owned(), function: function.to_owned(), used: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_exception_passes_and_an_unused_one_is_reported() {
        let text = "[[unsafe_code]]\nfile = 'a.rs'\nreason = 'Maps files.'\n\
                    [[unsafe_code]]\nfile = 'b.rs'\nreason = 'Maps files.'";
        let mut exceptions = Exceptions::parse(text).unwrap();
        assert!(exceptions.allow_unsafe_code("a.rs"));
        assert!(!exceptions.allow_unsafe_code("c.rs"));
        let unused = exceptions.unused();
        assert_eq!(unused.len(), 1);
        assert!(unused[0].message.contains("b.rs"));
    }

    #[test]
    fn an_exception_needs_a_rule_a_place_and_a_reason() {
        for text in [
            "[[slow]]\nfile = 'a.rs'\nreason = 'Because of it.'",
            "[[unsafe_code]]\nreason = 'Maps files.'",
            "[[unsafe_code]]\nfile = 'a.rs'",
            "[[long_function]]\nfile = 'a.rs'\nreason = 'A kernel.'",
        ] {
            assert!(Exceptions::parse(text).is_err(), "{text}");
        }
    }
}
