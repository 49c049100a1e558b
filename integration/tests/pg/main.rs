//! The store on PostgreSQL, against a real server: contract, first starts, formats, faults,
//! poolers, secrets.
//!
//! | file | noun |
//! |---|---|
//! | `support` | stores on a server of their own; a journal of acknowledgements |
//! | `contract` | the contract of a store; the cost of a call |
//! | `first_start`, `formats` | many nodes at once; content of other versions |
//! | `faults`, `outages` | a server that refuses; a server that goes away |
//! | `lineage` | lines of history; changes of leadership |
//! | `pooler`, `several` | a pooler before the server; several servers |
//! | `secrets` | passwords and TLS |

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
