//! Claims after a restart of the service, beside everything that can come between (P6).

use lockservice_core::LockMode::Exclusive;
use lockservice_core::service::{ClaimedLocks, LockSpec, Operation, Session, TxnClaim};
use lockservice_core::{LockMode, Sequence, ServiceId, SessionId, TxnNumber};
use shuttle::future::block_on;
use shuttle::thread;

use super::kit::{TTL, World, check, lock_embedded, op, spec};
use super::together;

/// A client that held an item before the restart.
struct Holder {
    id: SessionId,
    from: ServiceId,
    item: &'static str,
    claim: TxnClaim,
}

impl Holder {
    fn of(world: &World, item: &'static str) -> Self {
        let session = world.session();
        let granted = block_on(session.submit(op(1), Operation::Lock(spec(item, Exclusive))));
        let Ok(lockservice_core::service::OpResponse::Locked(granted)) = granted else {
            panic!("{item} is free")
        };
        let LockSpec { table, items, mode, .. } = spec(item, Exclusive);
        let (version, token) = (granted.grant.bind.version, granted.grant.token);
        let claim = TxnClaim {
            number: TxnNumber::new(1),
            id: Some(granted.txn),
            label: String::new(),
            next: Sequence::new(2),
            locks: vec![ClaimedLocks { table, version, token, mode, items }],
        };
        Self { id: session.id(), from: world.service.id(), item, claim }
    }

    fn comes_back(&self, world: &World) -> Session {
        let (earlier, ttl) = ((self.id, self.from), Some(TTL));
        let session =
            world.service.reclaim_session(earlier, None, ttl, "client", Default::default());
        session.expect("it serves")
    }

    /// Comes back, works under what it holds, and ends. False if its claim was refused.
    fn goes_on(&self, world: &World) -> bool {
        let session = self.comes_back(world);
        let claimed = block_on(session.claim(self.claim.clone()));
        let done = session.claims_done(TxnNumber::new(1));
        if claimed.is_ok() && done.is_ok() {
            world.work(self.item, Exclusive);
        }
        block_on(session.close());
        claimed.is_ok()
    }
}

fn newcomer(world: &World, item: &'static str, mode: LockMode) -> Box<dyn FnOnce() -> bool + Send> {
    let world = world.clone();
    Box::new(move || {
        let txn = lock_embedded(&world, item, mode);
        world.work(item, mode);
        txn.end(None);
        true
    })
}

fn holder(world: &World, holder: Holder) -> Box<dyn FnOnce() -> bool + Send> {
    let world = world.clone();
    Box::new(move || holder.goes_on(&world))
}

#[test]
fn a_table_serves_others_when_its_last_holder_has_claimed_and_not_before() {
    check(|world| {
        let world = world.bound();
        let [a, b] = ["a", "b"].map(|item| Holder::of(&world, item));
        let world = world.restarts();
        let all = together([
            holder(&world, a),
            holder(&world, b),
            newcomer(&world, "a", Exclusive),
            newcomer(&world, "*", Exclusive),
        ]);
        assert_eq!(all, [true; 4], "no holder lost what it held");
        world.ends_clean();
    });
}

#[test]
fn a_holder_that_closes_or_comes_back_without_its_locks_is_waited_for_no_longer() {
    check(|world| {
        let world = world.bound();
        let [a, b] = ["a", "b"].map(|item| Holder::of(&world, item));
        let world = world.restarts();
        let (closing, empty) = (world.clone(), world.clone());
        together([
            Box::new(move || closing.service.gave_up(a.id)) as Box<dyn FnOnce() + Send>,
            Box::new(move || {
                let session = b.comes_back(&empty);
                session.claims_done(TxnNumber::new(1)).expect("it serves");
                block_on(session.close());
            }),
            {
                let newcomer = newcomer(&world, "*", Exclusive);
                Box::new(move || assert!(newcomer()))
            },
        ]);
        world.ends_clean();
    });
}

/// A client claims twice at once, as over two streams, while its session lapses.
#[test]
fn a_claim_beside_another_and_beside_the_lapse_of_its_session_leaves_nothing_behind() {
    check(|world| {
        let world = world.bound();
        let a = Holder::of(&world, "a");
        let world = world.restarts();
        let (first, second) = (a.comes_back(&world), a.comes_back(&world));
        let claims = [first, second].map(|session| {
            let claim = a.claim.clone();
            Box::new(move || drop(block_on(session.claim(claim)))) as Box<dyn FnOnce() + Send>
        });
        let time = {
            let world = world.clone();
            thread::spawn(move || world.advance(TTL.mul_f64(1.2)))
        };
        together(claims);
        time.join().expect("no panic");
        // A timer that was set after the clock was read counts from there.
        while world.service.session(a.id).is_ok() {
            world.advance(TTL.mul_f64(1.2));
            thread::yield_now();
        }
        newcomer(&world, "a", Exclusive)();
        world.ends_clean();
    });
}
