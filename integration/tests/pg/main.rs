//! The store on PostgreSQL, against a real server: contract, first starts, formats, faults,
//! poolers, secrets.

mod contract;
mod faults;
mod first_start;
mod formats;
mod lineage;
mod outages;
mod pooler;
mod secrets;
mod several;
mod support;
