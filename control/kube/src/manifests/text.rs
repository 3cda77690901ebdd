//! A file's text as documents, each parsed on its own.
//!
//! A YAML parser stops at the first error of a stream. Here the stream is cut first, at lines that begin with `---`, which
//! YAML allows nowhere else: so one malformed document costs itself only, and its error has the line of the file.

use serde_json::Value;

/// Where something stands in a file, from 1; 0 is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub line: usize,
    pub column: usize,
}

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document<'a> {
    /// Its text: YAML with the marker blanked out, or JSON.
    text: std::borrow::Cow<'a, str>,
    /// Lines of the file before it.
    before: usize,
    /// Line of the file on which its content begins.
    pub line: usize,
}

/// Why a document cannot be read.
#[derive(Debug)]
pub(super) struct Malformed {
    pub at: Position,
    pub message: String,
}

/// Cuts a file into its documents; those without content are left out.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut cuts = vec![(0, 1)];
    let mut at = 0;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line, "---") && at > 0 {
            cuts.push((at, i + 1));
        }
        at += line.len();
    }
    let ends = cuts.iter().skip(1).map(|(at, _)| *at).chain([text.len()]);
    cuts.iter().zip(ends).filter_map(|((start, line), end)| document(&text[*start..end], line - 1)).collect()
}

fn document(text: &str, before: usize) -> Option<Document<'_>> {
    // After `...` only comments and directives may stand until the next `---`.
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        if is_marker(line, "...") {
            break;
        }
        end += line.len();
    }
    let text = &text[..end];
    let content = |line: &str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
    };
    let blanked: std::borrow::Cow<'_, str> =
        text.strip_prefix("---").map_or_else(|| text.into(), |rest| format!("   {rest}").into());
    let first = blanked.lines().position(content)?;
    Some(Document { text: blanked, before, line: before + first + 1 })
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl Document<'_> {
    /// Its content.
    pub(super) fn value(&self) -> Result<Value, Malformed> {
        let mut value: serde_yaml_ng::Value =
            serde_yaml_ng::from_str(&self.text).map_err(|e| self.malformed(&e))?;
        value.apply_merge().map_err(|e| self.malformed(&e))?;
        // Keys that are numbers become text, as they do for kubectl.
        serde_json::to_value(value)
            .map_err(|e| Malformed { at: Position { line: self.line, column: 0 }, message: e.to_string() })
    }

    /// The place that keeps a `T` from being read, where the parser can tell.
    pub(super) fn blame<T: serde::de::DeserializeOwned>(&self) -> Position {
        let start = Position { line: self.line, column: 0 };
        serde_yaml_ng::from_str::<T>(&self.text).err().map_or(start, |e| self.malformed(&e).at)
    }

    fn malformed(&self, error: &serde_yaml_ng::Error) -> Malformed {
        let at = error.location().map_or(Position { line: self.line, column: 0 }, |location| Position {
            line: self.before + location.line(),
            column: location.column(),
        });
        // The parser's own words end with a line of the document; ours has the line of the file.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
        Malformed { at, message }
    }
}

/// The documents of a JSON file: one value, or several in a row.
pub(super) fn json(text: &str) -> Vec<Result<Value, Malformed>> {
    let mut values = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let value = value.map_err(|e| Malformed {
            at: Position { line: e.line(), column: e.column() },
            message: e.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        });
        let stop = value.is_err();
        values.push(value);
        if stop {
            break;
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_document_has_its_line_in_the_file_and_leaves_the_others_alone() {
        let text = "# head\na: 1\n---\nb: [1\nc: 2\n---\nd: 4\n";
        let parsed: Vec<_> = documents(text).iter().map(Document::value).collect();
        assert_eq!(parsed[0].as_ref().unwrap()["a"], 1);
        let error = parsed[1].as_ref().unwrap_err();
        assert_eq!(error.at.line, 5, "{error:?}");
        assert!(error.at.column > 0 && !error.message.contains("line"), "{error:?}");
        assert_eq!(parsed[2].as_ref().unwrap()["d"], 4);
    }

    #[test]
    fn markers_count_only_at_the_start_of_a_line_and_empty_documents_do_not() {
        let text = "%YAML 1.2\n---\na: |\n  ---\n  text\n--- # second\nb: \"---\"\n---\n# nothing\n--- {c: 3}\n...\n# tail\n";
        let found = documents(text);
        let values: Vec<_> = found.iter().map(|d| d.value().unwrap()).collect();
        assert_eq!(values[0]["a"], "---\ntext\n");
        assert_eq!(values[1]["b"], "---");
        assert_eq!(values[2]["c"], 3);
        assert_eq!(values.len(), 3);
        assert_eq!(found.iter().map(|d| d.line).collect::<Vec<_>>(), [3, 7, 10]);
    }

    #[test]
    fn merge_keys_and_anchors_are_resolved_and_a_key_given_twice_is_refused() {
        let value = documents("base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n")[0].value().unwrap();
        assert_eq!(value["use"]["x"], 1);
        let twice = documents("a: 1\nb: 2\na: 3\n")[0].value().unwrap_err();
        assert!(twice.message.contains("duplicate"), "{twice:?}");
    }

    #[test]
    fn json_may_hold_several_values_and_an_error_has_its_line() {
        let values = json("{\"a\": 1}\n{\"b\": \n}");
        assert_eq!(values[0].as_ref().unwrap()["a"], 1);
        assert_eq!(values[1].as_ref().unwrap_err().at, Position { line: 3, column: 1 });
    }

    #[test]
    fn hostile_text_is_refused_and_never_hangs() {
        let deep = "[".repeat(100_000);
        assert!(documents(&deep)[0].value().is_err());
        let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x]\n");
        for (name, last) in ('b'..='k').zip('a'..) {
            bomb.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{last}"); 9].join(", ")));
        }
        assert!(documents(&bomb)[0].value().is_err());
    }
}
