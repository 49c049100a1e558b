//! The default of the lease, which depends on the store.

use figment::Figment;
use lockservice_core::store::ClusterConstants;

use super::Config;
use crate::store::StoreUrl;

const LEASE_TTL: &str = "allocator.constants.lease_ttl_ms";

/// True if the file or the environment sets the lease, be it to the default.
pub(super) fn is_set(merged: &Figment, defaults: &Figment) -> bool {
    merged.find_metadata(LEASE_TTL) != defaults.find_metadata(LEASE_TTL)
}

impl Config {
    /// Sets the lease to the default for the store, `store` or that of the settings. In a cluster
    /// it is how long the tables of a node that died are out of reach; with an exclusive store it
    /// is how long holders may be without their server.
    pub(super) fn lease_by_store(&mut self, store: Option<&str>) {
        let url = StoreUrl::parse(store.unwrap_or(&self.store));
        // An unreadable URL is an error where the store is opened.
        let constants = match url.is_ok_and(|url| url.is_shared()) {
            true => ClusterConstants::default(),
            false => ClusterConstants::for_exclusive_store(),
        };
        self.allocator.constants.lease_ttl_ms = constants.lease_ttl_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;

    #[test]
    fn the_lease_is_longer_with_an_exclusive_store_unless_it_is_set() {
        let lease = |flags: &[&str], env: &[(&str, &str)]| {
            load(flags, env).unwrap().allocator.constants.lease_ttl_ms
        };
        assert_eq!(lease(&[], &[]), 15_000);
        for store in ["memory:", "file:/x/y"] {
            assert_eq!(lease(&["--store", store], &[]), 15_000, "{store}");
        }
        assert_eq!(lease(&[], &[("LOCKSERVICE_STORE", "memory:")]), 15_000);
        for store in ["postgres://h/d", "redis://h"] {
            assert_eq!(lease(&["--store", store], &[]), 5_000, "{store}");
            assert_eq!(lease(&[], &[("LOCKSERVICE_STORE", store)]), 5_000, "{store}");
            // A flag goes before the environment.
            let both = lease(&["--store", "memory:"], &[("LOCKSERVICE_STORE", store)]);
            assert_eq!(both, 15_000, "{store}");
        }

        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for (store, other) in [("memory:", "5000"), ("redis://h", "15000")] {
            let set: u64 = other.parse().unwrap();
            let flags = ["--store", store, "--config", path];
            let variable = ("LOCKSERVICE_ALLOCATOR__CONSTANTS__LEASE_TTL_MS", other);
            assert_eq!(lease(&flags, &[variable]), set);
            let flag = format!("{other}ms");
            assert_eq!(lease(&[&flags[..], &["--lease-ttl", &flag]].concat(), &[]), set);
            std::fs::write(path, format!("[allocator.constants]\nlease_ttl_ms = {other}\n"))
                .unwrap();
            assert_eq!(lease(&flags, &[]), set);
            // Another setting of the same section is not this one.
            std::fs::write(path, "[allocator.constants]\nleadership_ttl_ms = 1500\n").unwrap();
            assert_ne!(lease(&flags, &[]), set);
        }
    }
}
