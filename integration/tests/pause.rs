//! A server that does not run for longer than its lease, as when its machine was suspended.

use integration::command::Commands;
use integration::on_each_store;
use integration::server::Place;
use integration::timeline::Timeline;

on_each_store! {
    a_server_that_slept_past_its_lease_serves_on_as_a_new_incarnation;
}

mod check {
    use integration::store::StoreKind;
    use lockservice_core::clock::{Clock as _, SystemClock, lo};
    use nix::sys::signal::Signal;

    use super::*;

    /// B1, B2, P2.
    pub(super) async fn a_server_that_slept_past_its_lease_serves_on_as_a_new_incarnation(
        store: StoreKind,
    ) {
        let place = Place::new(store);
        let server = place.start().await;
        let timeline = Timeline::new(place.directory());
        let commands = Commands { address: &place.address, timeline: timeline.path() };
        let mut old = commands.stubborn("old", "jobs", "nightly");
        let old_token = old.start_token().await;
        let before = place.binds().await;

        server.signal(Signal::SIGSTOP);
        // The holder gets no message: its deadline passes, within the lease.
        let old = old.ended().await;
        assert_eq!(old.status, Some(70), "{old:?}");
        assert!(old.said.contains("lost"), "{old:?}");
        let work_ended = timeline.events().len();
        // The time itself is what is tested here: the lease must run out by every count.
        let clock = SystemClock;
        let stopped = clock.now();
        while clock.now().since(stopped)
            < integration::LEASE + (integration::LEASE - lo(integration::LEASE))
        {
            tokio::time::sleep(integration::LEASE / 10).await;
        }
        assert_eq!(timeline.events().len(), work_ended, "nothing of the command is left");
        server.signal(Signal::SIGCONT);

        let next = commands.brief("next", &[], "jobs", "nightly").await;
        assert_eq!(next.status, Some(0), "{next:?}; {}", server.log());
        assert!(next.token > Some(old_token), "{next:?} after {old_token}");
        let after = place.binds().await;
        assert!(after["jobs"].owner > server.incarnation, "{after:?} after {}", server.incarnation);
        assert!(after["jobs"].version > before["jobs"].version, "{after:?} after {before:?}");
        timeline.check(&["old", "next"]);
        assert!(server.stop().await.success());
    }
}
