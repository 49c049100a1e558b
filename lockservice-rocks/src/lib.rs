//! `BindStore` on RocksDB.
