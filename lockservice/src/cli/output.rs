//! Results on stdout: tables for people, one JSON object a line for programs.

use std::borrow::Cow;
use std::io::{self, Write};

use serde_json::Value;

use super::exit::{self, Failure};

/// Stdout, written to so that a closed pipe (`lockservice locks | head -1`) ends the command
/// quietly instead of with a panic.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Output as JSON, or for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes a line, or several, at once: text for people, or one JSON object.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        let lines: Vec<String> = if self.json {
            vec![printable_json(text)]
        } else {
            text.split('\n').map(|line| printable(line).into_owned()).collect()
        };
        written(write_all(&lines))
    }

    /// Writes rows: aligned under a header for people, one object a line as JSON. `columns` names
    /// the fields that people see.
    pub(crate) fn rows(&self, columns: &[&str], rows: &[Value]) -> Result<(), Failure> {
        if self.json {
            let lines: Vec<String> =
                rows.iter().map(|row| printable_json(&row.to_string())).collect();
            return written(write_all(&lines));
        }
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| columns.iter().map(|name| cell(row.get(*name))).collect())
            .collect();
        let header: Vec<String> =
            columns.iter().map(|name| name.replace('_', " ").to_uppercase()).collect();
        let widths: Vec<usize> = (0..columns.len())
            .map(|i| {
                std::iter::once(&header)
                    .chain(&cells)
                    .map(|row| row[i].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let lines: Vec<String> =
            std::iter::once(&header).chain(&cells).map(|row| aligned(row, &widths)).collect();
        written(write_all(&lines))
    }
}

/// Text of another party, as it may be shown on a terminal: a server, or a client that
/// chose a name, must not move the cursor, clear the screen or turn the order of letters round.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_command) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::new(), |mut shown, c| {
        if is_command(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    }))
}

/// The same for a JSON text, which stays the same value: JSON itself escapes only half of it.
pub(crate) fn printable_json(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut shown, c| {
        if is_command(c) {
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            shown.push(c);
        }
        shown
    })
}

/// True for a character on which a terminal acts, instead of showing it.
fn is_command(c: char) -> bool {
    let turns_round =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns_round || matches!(c, '\u{2028}' | '\u{2029}')
}

/// One row of a table whose columns are so wide, in characters.
pub(crate) fn aligned(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (text, width) in row.iter().zip(widths) {
        line.push_str(&format!("{text:<width$}  "));
    }
    line.trim_end().to_owned()
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => printable(text).into_owned(),
        Some(other) => other.to_string(),
    }
}

fn write_all(lines: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Ok(()) => Ok(()),
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent(0)),
        Err(error) => Err(Failure::new(
            exit::IO,
            "output",
            format!("cannot write to standard output: {error}; check where it is redirected to"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_character_in_a_name_never_reaches_the_terminal() {
        assert_eq!(cell(Some(&Value::from("a\u{1b}[2J"))), "a\\u{1b}[2J");
        assert_eq!(cell(None), "-");
    }

    #[test]
    fn what_a_terminal_acts_upon_is_escaped_and_json_stays_the_same_value() {
        for (text, shown) in [
            ("plain (-∞, ü]", "plain (-∞, ü]"),
            ("\u{1b}]0;x\u{7}", "\\u{1b}]0;x\\u{7}"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("a\u{202e}b", "a\\u{202e}b"),
        ] {
            assert_eq!(printable(text), shown);
            let json = printable_json(&Value::from(text).to_string());
            assert!(!json.contains(is_command), "{json:?}");
            assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), Value::from(text));
        }
    }

    #[test]
    fn columns_line_up() {
        assert_eq!(aligned(&["a".into(), "b".into()], &[3, 3]), "a    b");
    }
}
