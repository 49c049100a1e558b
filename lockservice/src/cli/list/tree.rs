//! `waits --tree`: who blocks whom. Those who wait for nobody come first, each followed by those
//! who wait for it.
//!
//! A transaction has one full line: under the first holder that it waits for, or, if it waits for
//! holders of nothing, under the first waiter before it. Under the others it has a reference.
//! Those who wait for one holder stand under it in their order; that each of them also waits for
//! the one before it is not repeated.
//!
//! A cycle is a deadlock that is being resolved, or was seen because a list does not show one
//! moment. It has no root, so it begins with its smallest transaction, and its members are marked.
//!
//! No function calls itself, and each wait is visited a bounded number of times, so that neither a
//! long chain nor a cycle is a danger.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use lockservice_core::service::{TxnParty, WaitStatus};
use lockservice_core::{NodeName, TxnId};
use serde_json::{Map, Value};

use super::show::{self, item, millis, mode, party};
use super::{nodes, say_if_cut};
use crate::cli::exit::Failure;
use crate::client::ClusterList;

/// The deepest indentation, in levels: deeper lines say their depth instead.
const INDENT_MAX: usize = 16;

/// Prints the tree of the waits.
pub(super) fn print(json: bool, listed: ClusterList<WaitStatus>) -> Result<(), Failure> {
    say_if_cut(json, listed.is_cut, listed.lines.len(), "waits");
    let graph = Graph::new(&listed.lines);
    let rows = graph.lines().into_iter().map(|line| graph.row(&line, json)).collect();
    let mut columns = vec![
        "txn",
        "state",
        "group",
        "table",
        "key",
        "mode",
        "waiting_ms",
        "held_ms",
        "left_ms",
        "client",
        "session",
    ];
    if listed.nodes > 1 {
        columns.push("node");
    }
    show::rows(json, &columns, rows)?;
    nodes::finish(json, &listed.missing)
}

/// The waits, with the transactions by number in the order of the list.
struct Graph<'a> {
    waits: Vec<Wait<'a>>,
    txns: Vec<Txn<'a>>,
}

/// All waits of one transaction for another.
struct Wait<'a> {
    node: &'a NodeName,
    status: &'a WaitStatus,
    waiter: usize,
    holder: usize,
}

struct Txn<'a> {
    id: TxnId,
    party: &'a TxnParty,
    node: &'a NodeName,
    /// The wait under whose holder it has its full line; `None` if it waits for nobody.
    home: Option<usize>,
    /// Those who wait for it: numbers of waits.
    waiters: Vec<usize>,
    /// It is a member of a cycle.
    in_cycle: bool,
}

/// A line of the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Line {
    txn: usize,
    depth: usize,
    /// The wait that it shows.
    wait: Option<usize>,
    /// Its full line is elsewhere.
    is_reference: bool,
}

impl<'a> Graph<'a> {
    fn new(lines: &'a [(NodeName, WaitStatus)]) -> Self {
        let mut graph = Self { waits: Vec::new(), txns: Vec::new() };
        let (mut numbers, mut pairs) = (HashMap::new(), HashMap::new());
        for (node, status) in lines {
            let waiter = graph.number(&mut numbers, status.info.waiter, (&status.waiter, node));
            let holder = graph.number(&mut numbers, status.info.holder, (&status.holder, node));
            let wait = Wait { node, status, waiter, holder };
            match pairs.entry((waiter, holder)) {
                // Of several waits for one transaction the first one is shown, for a lock if there
                // is one.
                Entry::Occupied(at) => {
                    let at: &mut Wait<'_> = &mut graph.waits[*at.get()];
                    if status.info.granted && !at.status.info.granted {
                        *at = wait;
                    }
                }
                Entry::Vacant(at) => {
                    at.insert(graph.waits.len());
                    graph.waits.push(wait);
                }
            }
        }
        for (number, wait) in graph.waits.iter().enumerate() {
            graph.txns[wait.holder].waiters.push(number);
            let home = &mut graph.txns[wait.waiter].home;
            let is_better =
                |home: usize| wait.status.info.granted && !graph.waits[home].status.info.granted;
            if home.is_none_or(is_better) {
                *home = Some(number);
            }
        }
        graph.mark_cycles();
        graph
    }

    fn number(
        &mut self,
        numbers: &mut HashMap<TxnId, usize>,
        id: TxnId,
        (party, node): (&'a TxnParty, &'a NodeName),
    ) -> usize {
        *numbers.entry(id).or_insert_with(|| {
            let (waiters, home, in_cycle) = (Vec::new(), None, false);
            self.txns.push(Txn { id, party, node, home, waiters, in_cycle });
            self.txns.len() - 1
        })
    }

    /// Marks the members of cycles: strongly connected components of more than one transaction
    /// (Tarjan, 1972), with a stack of its own.
    fn mark_cycles(&mut self) {
        const UNSEEN: usize = usize::MAX;
        let count = self.txns.len();
        let (mut index, mut low) = (vec![UNSEEN; count], vec![0; count]);
        let (mut open, mut is_open) = (Vec::new(), vec![false; count]);
        let mut next = 0;
        for start in 0..count {
            if index[start] != UNSEEN {
                continue;
            }
            // A transaction, and how many of its waiters were visited.
            let mut way = vec![(start, 0)];
            while let Some((txn, visited)) = way.last_mut() {
                let txn = *txn;
                if *visited == 0 {
                    (index[txn], low[txn]) = (next, next);
                    next += 1;
                    open.push(txn);
                    is_open[txn] = true;
                }
                if let Some(wait) = self.txns[txn].waiters.get(*visited) {
                    *visited += 1;
                    let waiter = self.waits[*wait].waiter;
                    if index[waiter] == UNSEEN {
                        way.push((waiter, 0));
                    } else if is_open[waiter] {
                        low[txn] = low[txn].min(index[waiter]);
                    }
                    continue;
                }
                way.pop();
                if let Some((before, _)) = way.last() {
                    low[*before] = low[*before].min(low[txn]);
                }
                if low[txn] == index[txn] {
                    let from = open.iter().rposition(|it| *it == txn).unwrap_or(0);
                    let members = open.split_off(from);
                    for member in &members {
                        is_open[*member] = false;
                        self.txns[*member].in_cycle = members.len() > 1;
                    }
                }
            }
        }
    }

    /// The lines, in their order.
    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut is_shown = vec![false; self.txns.len()];
        let roots = (0..self.txns.len()).filter(|txn| self.txns[*txn].home.is_none());
        for txn in roots {
            self.add_tree(txn, &mut is_shown, &mut lines);
        }
        // What is left hangs on cycles.
        for txn in 0..self.txns.len() {
            if !is_shown[txn] {
                self.add_tree(self.cycle_above(txn), &mut is_shown, &mut lines);
            }
        }
        lines
    }

    /// Adds a transaction, and all that have their full lines under it.
    fn add_tree(&self, root: usize, is_shown: &mut [bool], lines: &mut Vec<Line>) {
        let wait = self.txns[root].home;
        let mut next = vec![Line { txn: root, depth: 0, wait, is_reference: false }];
        while let Some(line) = next.pop() {
            let is_reference = line.is_reference || is_shown[line.txn];
            lines.push(Line { is_reference, ..line });
            if is_reference {
                continue;
            }
            is_shown[line.txn] = true;
            let waiters = self.txns[line.txn].waiters.iter().rev();
            next.extend(waiters.filter(|wait| !self.is_implied(**wait)).map(|wait| {
                let txn = self.waits[*wait].waiter;
                let is_reference = self.txns[txn].home != Some(*wait);
                Line { txn, depth: line.depth + 1, wait: Some(*wait), is_reference }
            }));
        }
    }

    /// True if a wait behind another waiter is seen from the order under the holder of both.
    fn is_implied(&self, wait: usize) -> bool {
        let Wait { status, waiter, holder, .. } = &self.waits[wait];
        let home = |txn: usize| self.txns[txn].home.map(|home| self.waits[home].holder);
        !status.info.granted && home(*holder).is_some() && home(*holder) == home(*waiter)
    }

    /// The smallest transaction of the cycle to which the homes from `txn` lead.
    fn cycle_above(&self, txn: usize) -> usize {
        let up = |txn: usize| self.txns[txn].home.map_or(txn, |home| self.waits[home].holder);
        let (mut seen, mut within) = (HashSet::new(), txn);
        while seen.insert(within) {
            within = up(within);
        }
        let mut members = vec![within];
        while let Some(next) = members.last().map(|txn| up(*txn))
            && next != within
        {
            members.push(next);
        }
        members.into_iter().min_by_key(|txn| self.txns[*txn].id).unwrap_or(within)
    }

    /// The line as an object, for programs or for people.
    fn row(&self, line: &Line, json: bool) -> Map<String, Value> {
        let txn = &self.txns[line.txn];
        let wait = line.wait.map(|wait| &self.waits[wait]);
        let mut row = Map::new();
        let state = match wait.map(|wait| wait.status.info.granted) {
            None => "holds",
            Some(true) => "waits",
            Some(false) => "queues",
        };
        if let Some(Wait { status, holder, .. }) = wait {
            row.extend(item(&status.info.table, &status.info.item));
            row.insert("mode".into(), mode(status.info.mode));
            row.insert("waiting_ms".into(), millis(status.waiting).into());
            row.insert("waits_for".into(), self.txns[*holder].id.to_string().into());
        }
        let node = wait.map_or(txn.node, |wait| wait.node);
        row.insert("node".into(), node.as_str().into());
        row.extend(party("", txn.party));
        if json {
            row.insert("txn".into(), txn.id.to_string().into());
            row.insert("depth".into(), line.depth.into());
            row.insert("state".into(), state.into());
            row.insert("reference".into(), line.is_reference.into());
            row.insert("cycle".into(), txn.in_cycle.into());
            return row;
        }
        let indent = "  ".repeat(line.depth.min(INDENT_MAX));
        let deeper = match line.depth > INDENT_MAX {
            true => format!("({}) ", line.depth),
            false => String::new(),
        };
        row.insert("txn".into(), format!("{indent}{deeper}{}", txn.id).into());
        let cycle = if txn.in_cycle { ", in a cycle" } else { "" };
        let reference = if line.is_reference { ", see its other line" } else { "" };
        row.insert("state".into(), format!("{state}{cycle}{reference}").into());
        row
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lockservice_core::clock::Time;
    use lockservice_core::table::WaitInfo;
    use lockservice_core::{Key, LockItem, LockMode, ServiceId, TableRef, TxnNumber};

    use super::*;

    fn txn(number: u64) -> TxnId {
        TxnId::new(ServiceId::new(1), TxnNumber::new(number), false)
    }

    /// The waiter, whom it waits for, and whether that one holds.
    fn waits(all: &[(u64, u64, bool)]) -> Vec<(NodeName, WaitStatus)> {
        let wait = |&(waiter, holder, granted): &(u64, u64, bool)| {
            let row = LockItem::Row(Key::new("k").unwrap());
            let info = WaitInfo {
                table: TableRef::new("g", "t").unwrap(),
                item: row.clone(),
                mode: LockMode::Exclusive,
                waiter: txn(waiter),
                holder: txn(holder),
                held_item: row,
                granted,
                since: Time::ZERO,
            };
            let (waiter, holder) = (TxnParty::default(), TxnParty::default());
            let waiting = Duration::ZERO;
            (NodeName::new("n").unwrap(), WaitStatus { info, waiting, waiter, holder })
        };
        all.iter().map(wait).collect()
    }

    /// The tree: depth, transaction, `r` for a reference, `c` in a cycle.
    fn tree(all: &[(u64, u64, bool)]) -> Vec<String> {
        let waits = waits(all);
        let graph = Graph::new(&waits);
        let shown = |line: Line| {
            let txn = &graph.txns[line.txn];
            let (r, c) =
                (if line.is_reference { "r" } else { "" }, if txn.in_cycle { "c" } else { "" });
            format!("{} {}{r}{c}", line.depth, txn.id.number())
        };
        graph.lines().into_iter().map(shown).collect()
    }

    #[test]
    fn those_who_wait_for_nobody_come_first_and_a_queue_is_not_repeated() {
        let all = [(2, 1, true), (3, 1, true), (3, 2, false), (4, 3, true), (6, 5, true)];
        assert_eq!(tree(&all), ["0 1", "1 2", "1 3", "2 4", "0 5", "1 6"]);
    }

    #[test]
    fn one_who_waits_for_several_has_one_full_line_and_references() {
        let all = [(3, 1, true), (3, 2, true), (4, 3, true)];
        assert_eq!(tree(&all), ["0 1", "1 3", "2 4", "0 2", "1 3r"]);
        // Behind a waiter of another holder, and behind one alone.
        assert_eq!(tree(&[(2, 1, true), (3, 2, false)]), ["0 1", "1 2", "2 3"]);
        let other = [(2, 1, true), (4, 3, true), (4, 2, false)];
        assert_eq!(tree(&other), ["0 1", "1 2", "2 4r", "0 3", "1 4"]);
        // Two items of one holder are one wait for it.
        assert_eq!(tree(&[(2, 1, false), (2, 1, true)]), ["0 1", "1 2"]);
    }

    #[test]
    fn a_cycle_begins_with_its_smallest_member_is_marked_and_ends() {
        let ring = [(3, 2, true), (2, 4, true), (4, 3, true), (5, 3, true)];
        assert_eq!(tree(&ring), ["0 2c", "1 3c", "2 4c", "3 2rc", "2 5"]);
        assert_eq!(tree(&[(1, 1, true)]), ["0 1", "1 1r"], "one that waits for itself");
        // A cycle below a root, which is a cycle all the same.
        let below = [(2, 1, true), (3, 1, true), (2, 3, true), (3, 2, true)];
        assert_eq!(tree(&below), ["0 1", "1 2c", "2 3rc", "1 3c", "2 2rc"]);
    }

    #[test]
    fn a_long_chain_and_a_long_ring_have_one_full_line_for_each_member() {
        const LONG: u64 = 100_000;
        let mut chain: Vec<_> = (1..LONG).map(|n| (n + 1, n, true)).collect();
        assert_eq!(tree(&chain).last(), Some(&format!("{} {LONG}", LONG - 1)));
        chain.push((1, LONG, true));
        let ring = tree(&chain);
        assert_eq!((ring.len() as u64, &*ring[0]), (LONG + 1, "0 1c"));
        assert_eq!(ring.last(), Some(&format!("{LONG} 1rc")));
    }

    #[test]
    fn a_deep_line_says_its_depth_instead_of_being_indented_further() {
        let chain: Vec<_> = (1..30).map(|n| (n + 1, n, true)).collect();
        let waits = waits(&chain);
        let graph = Graph::new(&waits);
        let lines = graph.lines();
        let text = |at: usize| graph.row(&lines[at], false)["txn"].as_str().unwrap().to_owned();
        assert_eq!(text(2), format!("    {}", txn(3)));
        assert_eq!(text(20), format!("{}(20) {}", " ".repeat(2 * INDENT_MAX), txn(21)));
        assert_eq!(graph.row(&lines[2], true)["depth"], 2);
    }
}
