//! The store on Redis against real servers: standalone, under Sentinel, and a Cluster.

mod access;
mod contract;
mod faults;
mod forgetting;
mod format;
mod groups;
mod support;
