//! Nothing is left locked when everybody has gone, and nobody waits.

use lockservice_core::service::LockService;

/// What is left at a node: a line for each lock and each wait, at most so many.
pub fn leftovers(name: &str, service: &LockService, most: usize) -> Vec<String> {
    let mut left = Vec::new();
    let mut locks = service.lock_list(None);
    while left.len() < most
        && let Some(slice) = locks.next_slice(100)
    {
        left.extend(slice.into_iter().map(|lock| format!("{name}: lock {:?}", lock.info)));
    }
    let mut waits = service.wait_list(None);
    while left.len() < most
        && let Some(slice) = waits.next_slice(100)
    {
        left.extend(slice.into_iter().map(|wait| format!("{name}: wait {:?}", wait.info)));
    }
    left
}
