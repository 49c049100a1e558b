//! Results on stdout: tables for people, one JSON object a line for programs.

use std::io::{self, Write};

use serde_json::Value;

use super::exit::{self, Failure};

/// Stdout, written to so that a closed pipe (`lockservice locks | head -1`) ends the command quietly instead of with a panic.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Output as JSON, or for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes one line at once.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        written(write_all(&[text]))
    }

    /// Writes rows: aligned under a header for people, one object a line as JSON. `columns` names the fields that people see.
    pub(crate) fn rows(&self, columns: &[&str], rows: &[Value]) -> Result<(), Failure> {
        if self.json {
            let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
            return written(write_all(&lines.iter().map(String::as_str).collect::<Vec<_>>()));
        }
        let cells: Vec<Vec<String>> =
            rows.iter().map(|row| columns.iter().map(|name| cell(row.get(*name))).collect()).collect();
        let header: Vec<String> = columns.iter().map(|name| name.replace('_', " ").to_uppercase()).collect();
        let widths: Vec<usize> = (0..columns.len())
            .map(|i| std::iter::once(&header).chain(&cells).map(|row| row[i].chars().count()).max().unwrap_or(0))
            .collect();
        let lines: Vec<String> = std::iter::once(&header).chain(&cells).map(|row| aligned(row, &widths)).collect();
        written(write_all(&lines.iter().map(String::as_str).collect::<Vec<_>>()))
    }
}

fn aligned(row: &[String], widths: &[usize]) -> String {
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
        // A control character in a name that a client chose must not reach the terminal.
        Some(Value::String(text)) => text.chars().flat_map(shown).collect(),
        Some(other) => other.to_string(),
    }
}

fn shown(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

fn write_all(lines: &[&str]) -> io::Result<()> {
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
    fn columns_line_up() {
        assert_eq!(aligned(&["a".into(), "b".into()], &[3, 3]), "a    b");
    }
}
