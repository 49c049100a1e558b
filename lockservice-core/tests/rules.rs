//! Every safety rule that the repository cites is defined in `src/docs/protocol.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The test reads code, docs and scripts. Fixtures are as old versions wrote them.
const EXTENSIONS: [&str; 6] = ["rs", "md", "proto", "sql", "txt", "toml"];
const PASSED_OVER: [&str; 4] = ["target", "fixtures", ".git", "CHANGELOG.md"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository") {
        let entry = entry.expect("an entry");
        let (path, name) = (entry.path(), entry.file_name());
        if PASSED_OVER.iter().any(|passed| *passed == name) {
            continue;
        }
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| *known == e)) {
            found.push(path);
        }
    }
}

/// The form of a rule's number: a capital letter and one or two digits, alone.
fn numbers(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for word in text.split(|c: char| !is_word(c)) {
        let mut chars = word.chars();
        let letter = chars.next().is_some_and(|c| c.is_ascii_uppercase());
        let digits = chars.as_str();
        if letter && (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) {
            found.push(word);
        }
    }
    found
}

/// The comment of a line of Rust or of the protocol's definition; all of any other line.
fn prose<'a>(path: &Path, line: &'a str) -> &'a str {
    match path.extension().and_then(|e| e.to_str()) {
        Some("rs" | "proto") => line.find("//").map_or("", |at| &line[at..]),
        Some("sql") => line.find("--").map_or("", |at| &line[at..]),
        Some("toml") => line.find('#').map_or("", |at| &line[at..]),
        _ => line,
    }
}

fn defined() -> BTreeSet<String> {
    let protocol = fs::read_to_string(repository().join("lockservice-core/src/docs/protocol.md"));
    let protocol = protocol.expect("the rules");
    let rules = protocol.lines().filter_map(|line| line.strip_prefix("- **"));
    rules
        .filter_map(|rule| numbers(rule.split(['.', ' ']).next()?).first().map(|n| (*n).to_owned()))
        .collect()
}

#[test]
fn every_rule_that_is_cited_is_defined() {
    let defined = defined();
    assert!(defined.contains("L4") && defined.contains("C5") && defined.len() >= 30, "{defined:?}");
    let mut files = Vec::new();
    collect(&repository(), &mut files);
    assert!(files.len() > 100, "{files:?}");
    let mut undefined = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("text");
        for (at, line) in text.lines().enumerate() {
            for number in numbers(prose(&path, line)) {
                if !defined.contains(number) {
                    undefined.push(format!("{}:{}: {number}", path.display(), at + 1));
                }
            }
        }
    }
    assert!(
        undefined.is_empty(),
        "cited, and not defined in protocol.md:\n{}",
        undefined.join("\n")
    );
}

/// An operator has no rule book.
#[test]
fn no_log_line_error_or_comment_in_a_database_cites_a_rule() {
    let defined = defined();
    let mut files = Vec::new();
    for member in [
        "lockservice-core",
        "lockservice-pg",
        "lockservice-redis",
        "lockservice-rocks",
        "lockservice",
    ] {
        collect(&repository().join(member).join("src"), &mut files);
    }
    let mut cited = Vec::new();
    for path in files {
        let shown = path.display().to_string();
        // The texts of tests are for those who work on the rules.
        if shown.contains("/testing/") || shown.contains("/docs/") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        let text = text.split("mod tests {").next().unwrap_or_default();
        let sql = shown.ends_with(".sql");
        for (at, line) in text.lines().enumerate() {
            let code = match sql {
                true => line.split("--").next().unwrap_or_default(),
                false => line.split("//").next().unwrap_or_default(),
            };
            let within = code.split(if sql { '\'' } else { '"' }).skip(1).step_by(2);
            let hits = within.flat_map(numbers).filter(|number| defined.contains(*number));
            cited.extend(hits.map(|number| format!("{shown}:{}: {number}", at + 1)));
        }
    }
    assert!(cited.is_empty(), "text for users that cites a rule:\n{}", cited.join("\n"));
}
