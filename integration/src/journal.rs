//! A journal that many commands write under their locks, and that refuses by F1.
//!
//! Every `journal_writer` appends lines `DOES KEY NAME TOKEN PID` to one file. The kernel puts them
//! in one order. The journal reads them in that order, as a store of data would, and refuses:
//!
//! - a line with a smaller token than the largest one of its key (F1),
//! - a line of a command whose turn is over, or that did not begin its turn,
//! - a turn under a token that another turn of the key had,
//! - a command that began while another of the same key still ran.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The pause between two looks at the file, which says nothing by itself.
const LOOK: Duration = Duration::from_millis(20);

/// One life of a command under its lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// What the command was called.
    pub name: String,
    /// The key that it held.
    pub key: String,
    /// The fencing token.
    pub token: u64,
    /// The process.
    pub pid: u32,
}

/// The last turn of a key.
#[derive(Debug)]
struct Last {
    turn: Turn,
    ended: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    read: u64,
    /// A line whose end is not yet there.
    partial: String,
    last: HashMap<String, Last>,
    turns: Vec<Turn>,
    lines: u64,
}

impl Journal {
    /// An empty journal in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("journal"),
            read: 0,
            partial: String::new(),
            last: HashMap::new(),
            turns: Vec::new(),
            lines: 0,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells every writer to end, now and from now on.
    ///
    /// # Panics
    /// If the directory cannot be written.
    pub fn stop_writers(&self) {
        let stop = self.path.with_extension("stop");
        File::create(stop).expect("the test's directory can be written");
    }

    /// Every turn so far, in the order in which they began. Reads what is new.
    ///
    /// # Panics
    /// If a line is refused.
    pub fn turns(&mut self) -> &[Turn] {
        let mut new = std::mem::take(&mut self.partial);
        // It is made by the first writer.
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::Start(self.read)).expect("a file");
            self.read += file.read_to_string(&mut new).expect("a journal is text") as u64;
        }
        for line in new.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    if let Err(why) = self.accept(line) {
                        panic!("the journal refuses {line:?}: {why}");
                    }
                }
                None => line.clone_into(&mut self.partial),
            }
        }
        &self.turns
    }

    /// Waits until `reached` is true of the turns so far, which is looked at again and again.
    ///
    /// # Panics
    /// If a line is refused.
    pub async fn wait_until(&mut self, reached: impl Fn(&[Turn]) -> bool) {
        while !reached(self.turns()) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The number of lines that were read.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Takes a line, or says why not.
    fn accept(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split(' ').collect();
        let [does, key, name, token, pid] = words.as_slice() else {
            return Err("it is no line of a journal".to_owned());
        };
        let (Ok(token), Ok(pid)) = (token.parse(), pid.parse()) else {
            return Err("it has no token, or no process".to_owned());
        };
        let turn = Turn { name: (*name).to_owned(), key: (*key).to_owned(), token, pid };
        self.lines += 1;
        let last = self.last.get_mut(*key);
        if let Some(last) = &last
            && token < last.turn.token
        {
            return Err(format!("F1: its token is below that of {:?}", last.turn));
        }
        match (*does, last) {
            ("begins", Some(last)) if token == last.turn.token => {
                Err(format!("{:?} had its token", last.turn))
            }
            ("begins", _) => {
                self.last.insert((*key).to_owned(), Last { turn: turn.clone(), ended: false });
                self.turns.push(turn);
                Ok(())
            }
            ("overlaps", last) => Err(format!("another still runs; the last was {last:?}")),
            ("works" | "ends", Some(last)) if last.turn == turn && !last.ended => {
                last.ended = *does == "ends";
                Ok(())
            }
            ("works" | "ends", last) => Err(format!("it is not its turn, but that of {last:?}")),
            _ => Err("it is no line of a journal".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The refusal of the last of these lines; the others are taken.
    fn refusal(lines: &[&str]) -> Option<String> {
        let mut journal = Journal::new(Path::new("nowhere"));
        let (last, others) = lines.split_last().expect("some lines");
        for line in others {
            journal.accept(line).expect(line);
        }
        journal.accept(last).err()
    }

    fn is_refused(lines: &[&str], why: &str) {
        let said = refusal(lines).expect("refused");
        assert!(said.contains(why), "{said}");
    }

    #[test]
    fn turns_of_a_key_that_follow_each_other_are_taken_and_keys_are_apart() {
        let lines = [
            "begins a x 5 1",
            "works a x 5 1",
            "begins b y 3 2",
            "works a x 5 1",
            "ends a x 5 1",
            "begins a z 7 3",
            "works b y 3 2",
            // One that was killed before its end.
            "begins a x 9 4",
        ];
        assert_eq!(refusal(&lines), None);
    }

    #[test]
    fn a_smaller_token_than_the_largest_of_its_key_is_refused() {
        is_refused(&["begins a x 5 1", "ends a x 5 1", "begins a y 4 2"], "F1");
        is_refused(&["begins a x 5 1", "begins a y 6 2", "works a x 5 1"], "F1");
    }

    #[test]
    fn two_turns_under_one_token_and_lines_out_of_turn_are_refused() {
        is_refused(&["begins a x 5 1", "ends a x 5 1", "begins a y 5 2"], "had its token");
        is_refused(&["begins a x 5 1", "works a x 5 2"], "not its turn");
        is_refused(&["begins a x 5 1", "ends a x 5 1", "works a x 5 1"], "not its turn");
        is_refused(&["begins a x 5 1", "works a x 6 1"], "not its turn");
        is_refused(&["works a x 5 1"], "not its turn");
    }

    #[test]
    fn a_command_that_began_beside_another_is_refused() {
        is_refused(&["begins a x 5 1", "overlaps a y 6 2"], "another still runs");
    }
}
