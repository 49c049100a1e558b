//! [`KnownTables`]: names of tables that were checked already.

use lockservice_core::{Result, TableRef};

use super::table_from_proto;

/// Most tables that are known at once. One that is not is checked as if it were new.
const KNOWN_MAX: usize = 8;

/// The tables that one stream has named. Nearly every operation names one of a few tables; their
/// names are neither checked nor copied again.
#[derive(Debug, Default)]
pub struct KnownTables {
    tables: Vec<TableRef>,
    /// Whose place the next new table takes.
    next: usize,
}

impl KnownTables {
    /// As [`table_from_proto`].
    ///
    /// # Errors
    /// `InvalidArgument` if the message cannot be read.
    pub fn table(&mut self, group: &str, name: &str) -> Result<TableRef> {
        let is_named =
            |table: &&TableRef| table.name.as_str() == name && table.group.as_str() == group;
        if let Some(known) = self.tables.iter().find(is_named) {
            return Ok(known.clone());
        }
        let table = table_from_proto(group, name)?;
        if group.is_empty() {
            // Known by another name than it is sent with: rare, and not worth a place.
            return Ok(table);
        }
        if self.tables.len() < KNOWN_MAX {
            self.tables.push(table.clone());
        } else {
            self.tables[self.next] = table.clone();
            self.next = (self.next + 1) % KNOWN_MAX;
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_the_one_of_its_names_however_many_are_named() {
        let mut known = KnownTables::default();
        for _ in 0..3 {
            for number in 0..3 * KNOWN_MAX {
                let name = format!("t{}", number * number % 11);
                for group in ["", "default", "g"] {
                    let table = known.table(group, &name).expect("names");
                    assert_eq!(table, table_from_proto(group, &name).expect("names"));
                }
            }
        }
        assert!(known.tables.len() <= KNOWN_MAX);
        assert!(known.table("g", "a\nb").is_err());
    }
}
