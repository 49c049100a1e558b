//! The store on Redis against real servers: standalone, under Sentinel, and a Cluster.
//!
//! | file | noun |
//! |---|---|
//! | `support` | stores, candidates and leaders |
//! | `contract`, `format` | the contract of a store; format 1 |
//! | `access` | passwords, permissions, TLS, and servers that are none |
//! | `faults` | servers that refuse, hang or forget scripts |
//! | `forgetting` | servers that lose data |
//! | `groups` | Sentinel and Cluster |

mod access;
mod contract;
mod faults;
mod forgetting;
mod format;
mod groups;
mod support;
