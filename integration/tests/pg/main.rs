//! The store on PostgreSQL, against a real server: contract, first starts, formats, faults, secrets.

mod contract;
mod faults;
mod first_start;
mod formats;
mod lineage;
mod outages;
mod secrets;
mod support;
