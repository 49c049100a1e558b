//! The flags of `serve`, which go before the file and the environment.

use std::path::PathBuf;

use super::Config;
use crate::cli::args::ServeArgs;

impl Config {
    /// Sets what the flags say.
    pub(super) fn apply(&mut self, args: &ServeArgs) {
        let set = |field: &mut String, flag: &Option<String>| {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        };
        set(&mut self.listen, &args.listen);
        set(&mut self.advertise, &args.advertise);
        set(&mut self.peer_listen, &args.peer_listen);
        set(&mut self.peer_advertise, &args.peer_advertise);
        set(&mut self.metrics, &args.metrics);
        set(&mut self.traces, &args.traces);
        set(&mut self.store, &args.store);
        set(&mut self.node, &args.node);
        set(&mut self.log, &args.log);
        self.log_format = args.log_format.or(self.log_format);
        let set_path = |field: &mut PathBuf, flag: &Option<PathBuf>| {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        };
        set_path(&mut self.state_dir, &args.state_dir);
        set_path(&mut self.tls.cert, &args.tls_cert);
        set_path(&mut self.tls.key, &args.tls_key);
        set_path(&mut self.tls.client_ca, &args.tls_client_ca);
        set_path(&mut self.tls.peer_ca, &args.tls_peer_ca);
        self.tls.client_cert_optional |= args.tls_client_cert_optional;
        set_path(&mut self.peer_token_file, &args.peer_token_file);
        set_path(&mut self.identity_file, &args.identity_file);
        self.insecure |= args.insecure;
        self.drain_stop |= args.drain_stop;
        let ms =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        if let Some(ttl) = args.lease_ttl {
            self.allocator.constants.lease_ttl_ms = ms(ttl);
        }
        if let Some(wait) = args.slow_wait {
            self.service.slow_wait_ms = ms(wait);
        }
        if let Some(time) = args.start_timeout {
            self.start_ms_max = ms(time).max(1);
        }
        if let Some(idle) = args.table_idle {
            // One setting is for tables with an owner and one for tables without: for the operator
            // they are the same.
            (self.service.table_idle_ms, self.allocator.table_idle_ms) = (ms(idle), ms(idle));
        }
        if let Some(ttl) = args.session_ttl {
            self.service.session_ttl_ms = ms(ttl);
        }
    }
}
