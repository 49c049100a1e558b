//! The memory of a server.

/// From now on memory that is not in use goes back to the system by a thread of the allocator, also
/// while the server has nothing to do.
///
/// For a process that serves. In others the thread would be of no use, and the first thread of a
/// process has a side effect: glibc takes signal 33 then, so that a command that is executed in its
/// place would not find it ignored as its caller left it.
pub(super) fn give_back() {
    #[cfg(all(feature = "jemalloc", target_os = "linux"))]
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        tracing::warn!(?error, "memory is given back late: the allocator has no thread for it");
    }
}
