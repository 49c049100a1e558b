//! A look at RocksDB's own logs before it reads them.
//!
//! RocksDB 11.8 never comes back from opening a database in whose manifest one damaged byte turns a
//! record into one of a recycled log. Logs are never recycled here, so such a record, like one of a
//! type that no version has, is damage, and is found without RocksDB.

use std::fs;
use std::io;
use std::path::Path;

/// A log is a sequence of blocks of this size; no record crosses into the next one.
const BLOCK_BYTES: usize = 32 << 10;
/// Checksum (4 bytes), length (2 bytes), type (1 byte).
const HEADER_BYTES: usize = 7;

/// Whole records, parts of records, the compression of what follows, sizes of timestamps, and what
/// the log before this one was.
const TYPES: [u8; 7] = [1, 2, 3, 4, 9, 10, 130];

/// The name of a damaged log in the folder of a database, if there is one.
pub(crate) fn damaged_log(folder: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if (name.starts_with("MANIFEST-") || name.ends_with(".log"))
            && !is_plausible(&fs::read(folder.join(&name))?)
        {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// False if RocksDB would meet a record that cannot be there. Its checksums are left to RocksDB.
fn is_plausible(log: &[u8]) -> bool {
    log.chunks(BLOCK_BYTES).all(|block| {
        let mut rest = block;
        while let Some((&[_, _, _, _, low, high, kind], records)) =
            rest.split_first_chunk::<HEADER_BYTES>()
        {
            let length = usize::from(u16::from_le_bytes([low, high]));
            if kind == 0 && length == 0 {
                // Space that nothing was written to yet.
                break;
            }
            if !TYPES.contains(&kind) {
                return false;
            }
            // A record that was cut off is the end of the log.
            let Some(next) = records.get(length..) else { break };
            rest = next;
        }
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_recycled_log_is_implausible_wherever_it_stands_and_a_cut_or_unwritten_end_is_not()
     {
        let record = |kind: u8| [&[0, 0, 0, 0, 3, 0, kind], b"abc".as_slice()].concat();
        assert!(is_plausible(&[]));
        assert!(is_plausible(&[record(1), record(2), record(4), vec![0; 100]].concat()));
        assert!(is_plausible(&[record(1), record(1)[..8].to_vec()].concat()));
        assert!(!is_plausible(&[record(1), record(5)].concat()));
        let mut second_block = record(1);
        second_block.resize(BLOCK_BYTES, 0);
        second_block.extend(record(131));
        assert!(!is_plausible(&second_block));
    }
}
