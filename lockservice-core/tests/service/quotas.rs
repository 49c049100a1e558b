//! What one client may use of a node: bounded, and returned however its sessions end.

use lockservice_core::service::{OpenedBy, Quota, QuotaOwner, QuotaSettings};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A client with these limits, and the quota of its one connection.
fn client(limits: QuotaSettings) -> (Arc<Quota>, Arc<Quota>) {
    let client = Quota::new(QuotaOwner::Client("the identity \"a\"".to_owned()), limits, None);
    let no_limits = QuotaSettings::default();
    let connection = Quota::new(QuotaOwner::Connection, no_limits, Some(Arc::clone(&client)));
    (client, connection)
}

fn open_as(service: &LockService, quota: &Arc<Quota>, identity: &str) -> Result<Session> {
    let opened_by = OpenedBy { identity: identity.to_owned(), ..OpenedBy::default() };
    service.open_session_within(Some(Arc::clone(quota)), Some(2 * SECOND), "test", opened_by)
}

fn lock(spec: LockSpec) -> Operation {
    Operation::Lock(spec)
}

const END: Operation = Operation::End { commit: None };

#[tokio::test(start_paused = true)]
async fn the_memory_of_the_locks_of_a_client_is_bounded_over_its_sessions_and_releases_are_not() {
    let (service, _allocator) = service().await;
    let limits = QuotaSettings { lock_bytes_max: 64 << 10, ..QuotaSettings::default() };
    let (client, connection) = client(limits);
    let sessions = [(); 2].map(|()| open_as(&service, &connection, "a").expect("room"));
    let other = open(&service);
    // The rows of one transaction, one by one, until the client has no room.
    let mut held = 0;
    let refused = loop {
        let name = format!("{held:05}");
        match sessions[0].submit(op(1, held + 1), lock(spec(&name))).await {
            Ok(_) => held += 1,
            Err(e) => break e,
        }
        sessions[0].ack(TxnNumber::new(1), Sequence::new(held));
    };
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    for said in ["bytes of locks of the identity \"a\"", "lock_bytes_per_client_max", "65536"] {
        assert!(refused.to_string().contains(said), "{refused}");
    }
    // A row takes about 85 bytes, and the last one had to find the most that it may take.
    assert!((600..=775).contains(&held), "{held}");
    assert!(client.usage().lock_bytes_max <= 64 << 10);
    // The other session is the same client, in every way of locking.
    let many = || (0..100).map(|n| row(&format!("many {n}"))).collect();
    for (number, spec) in [(1, spec("x")), (2, LockSpec::new(table(), many()))] {
        let refused = sessions[1].submit(op(number, 1), lock(spec.clone())).await;
        assert_eq!(refused.expect_err("no room").kind(), ErrorKind::ResourceExhausted);
        done(sessions[1].submit(op(number, 2), END).await);
        locked(other.submit(op(number, 1), lock(spec)).await);
        done(other.submit(op(number, 2), END).await);
    }
    // Whatever way refused them, they are counted.
    let counts = service.metrics().counts().refused;
    let counted = counts.iter().find(|(kind, _)| *kind == ErrorKind::ResourceExhausted);
    assert_eq!(counted.map(|(_, count)| *count), Some(3));
    // It is renewed, and releases.
    sessions[1].renew().expect("a heartbeat");
    let items = (0..held).map(|n| row(&format!("{n:05}"))).collect();
    let unlock = Operation::Unlock { table: table(), items, commit: None };
    assert_eq!(released(sessions[0].submit(op(1, held + 2), unlock).await), held as usize);
    // What was released is room again, before the transaction ends.
    assert!(client.usage().lock_bytes_max < 4 << 10, "{:?}", client.usage());
    locked(sessions[1].submit(op(3, 1), lock(LockSpec::new(table(), many()))).await);
    for session in sessions {
        session.close().await;
    }
    assert_eq!(client.usage(), client_of_nothing());
}

#[tokio::test(start_paused = true)]
async fn the_transactions_of_a_client_are_bounded_and_one_that_never_began_may_be_ended() {
    let (service, _allocator) = service().await;
    let limits = QuotaSettings { txns_max: 2, ..QuotaSettings::default() };
    let (client, connection) = client(limits);
    let session = open_as(&service, &connection, "a").expect("room");
    for number in 1..=2 {
        locked(session.submit(op(number, 1), lock(spec(&number.to_string()))).await);
    }
    let refused = session.submit(op(3, 1), lock(spec("3"))).await.expect_err("two are allowed");
    assert!(refused.to_string().contains("transactions of the identity \"a\""), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    done(session.submit(op(3, 2), END).await);
    done(session.submit(op(1, 2), END).await);
    locked(session.submit(op(4, 1), lock(spec("3"))).await);
    // New limits count at once, and take nothing away.
    client.set_limits(QuotaSettings { txns_max: 1, ..limits });
    session.submit(op(5, 1), lock(spec("5"))).await.expect_err("one is allowed");
    client.set_limits(QuotaSettings { txns_max: 3, ..limits });
    locked(session.submit(op(6, 1), lock(spec("5"))).await);
}

#[tokio::test(start_paused = true)]
async fn a_session_exists_for_the_identity_that_opened_it_alone() {
    let (service, _allocator) = service().await;
    let (_client, connection) = client(QuotaSettings::default());
    let of_a = open_as(&service, &connection, "a").expect("room").id();
    let of_anyone = open(&service).id();
    let unknown = lockservice_core::SessionId::new(1);
    assert_eq!(service.session_of(of_a, "a").expect("its own").id(), of_a);
    assert_eq!(service.session_of(of_anyone, "").expect("its own").id(), of_anyone);
    let said = service.session_of(unknown, "a").expect_err("there is none");
    for (id, identity) in [(of_a, "b"), (of_a, ""), (of_anyone, "a")] {
        let refused = service.session_of(id, identity).expect_err("not its own");
        let same = |of: &lockservice_core::Error| (of.kind(), of.to_string());
        assert_eq!(same(&refused), same(&said), "as of one that does not exist");
    }
}

fn client_of_nothing() -> QuotaSettings {
    client(QuotaSettings::default()).0.usage()
}

/// A step of a client with some sessions.
#[derive(Clone, Debug)]
enum Step {
    Open,
    /// Locks so many rows from this one on, waiting or not.
    Lock {
        session: usize,
        txn: u64,
        first: u8,
        rows: u8,
        waits: bool,
    },
    Unlock {
        session: usize,
        txn: u64,
        first: u8,
    },
    End {
        session: usize,
        txn: u64,
        quiet: bool,
    },
    Cancel {
        session: usize,
        txn: u64,
    },
    Ack {
        session: usize,
        txn: u64,
    },
    Close(usize),
    Kill {
        session: usize,
        now: bool,
    },
    /// A session that is not renewed for so long lapses.
    Renew(usize),
    Wait {
        tenths: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..4_usize, 1..4_u64);
    prop_oneof![
        2 => Just(Step::Open),
        6 => (at(), 0..20_u8, 1..40_u8, any::<bool>()).prop_map(
            |((session, txn), first, rows, waits)| Step::Lock { session, txn, first, rows, waits }
        ),
        2 => (at(), 0..20_u8).prop_map(|((session, txn), first)| {
            Step::Unlock { session, txn, first }
        }),
        2 => (at(), any::<bool>())
            .prop_map(|((session, txn), quiet)| Step::End { session, txn, quiet }),
        1 => at().prop_map(|(session, txn)| Step::Cancel { session, txn }),
        1 => at().prop_map(|(session, txn)| Step::Ack { session, txn }),
        1 => (0..4_usize).prop_map(Step::Close),
        1 => (0..4_usize, any::<bool>()).prop_map(|(session, now)| Step::Kill { session, now }),
        2 => (0..4_usize).prop_map(Step::Renew),
        1 => (0..25_u32).prop_map(|tenths| Step::Wait { tenths }),
    ]
}

/// The sessions of a client, and the next number of each of their transactions.
#[derive(Default)]
struct Client {
    sessions: Vec<(Session, [u64; 4])>,
}

impl Client {
    fn at(&mut self, session: usize) -> Option<&mut (Session, [u64; 4])> {
        let count = self.sessions.len();
        self.sessions.get_mut(session % count.max(1))
    }

    fn submit(&mut self, session: usize, txn: u64, operation: Operation) {
        if let Some((session, sequences)) = self.at(session) {
            let sequence = &mut sequences[txn as usize];
            *sequence += 1;
            // Nobody waits for the response; some wait for ever.
            drop(session.submit(validating_if(txn == 3, txn, *sequence), operation));
        }
    }

    async fn take(&mut self, step: Step, service: &LockService, quota: &Arc<Quota>) {
        match step {
            // At the limit of sessions.
            Step::Open => self.sessions.extend(open_as(service, quota, "a").map(|it| (it, [0; 4]))),
            Step::Lock { session, txn, first, rows, waits } => {
                let items = (first..first + rows).map(|n| row(&n.to_string())).collect();
                let wait = if waits { WaitPolicy::Wait } else { WaitPolicy::NoWait };
                self.submit(session, txn, lock(LockSpec { wait, ..LockSpec::new(table(), items) }));
            }
            Step::Unlock { session, txn, first } => {
                let items = (first..first + 9).map(|n| row(&n.to_string())).collect();
                let unlock = Operation::Unlock { table: table(), items, commit: None };
                self.submit(session, txn, unlock);
            }
            Step::End { session, txn, quiet } => {
                if let Some((session, sequences)) = self.at(session) {
                    let sequence = &mut sequences[txn as usize];
                    *sequence += 1;
                    let op = validating_if(txn == 3, txn, *sequence);
                    drop(if quiet {
                        session.submit_quiet(op, END)
                    } else {
                        session.submit(op, END)
                    });
                }
            }
            Step::Cancel { session, txn } => {
                if let Some((session, sequences)) = self.at(session) {
                    let last = Sequence::new(sequences[txn as usize]);
                    session.cancel(TxnNumber::new(txn), last);
                }
            }
            Step::Ack { session, txn } => {
                if let Some((session, sequences)) = self.at(session) {
                    session.ack(TxnNumber::new(txn), Sequence::new(sequences[txn as usize]));
                }
            }
            Step::Close(session) => {
                if let Some((session, _)) = self.at(session) {
                    session.close().await;
                }
            }
            Step::Kill { session, now } => {
                if let Some((session, _)) = self.at(session) {
                    // It may be over.
                    drop(service.kill_session(session.handle(), "a test", now));
                }
            }
            Step::Renew(session) => {
                if let Some((session, _)) = self.at(session) {
                    // It may have lapsed.
                    let _ = session.renew();
                }
            }
            Step::Wait { tenths } => tokio::time::sleep(SECOND / 10 * tenths).await,
        }
    }
}

fn validating_if(validates: bool, txn: u64, sequence: u64) -> TxnOp {
    if validates { validating(txn, sequence) } else { op(txn, sequence) }
}

/// Takes the steps, and lets all sessions end: they lapse, or with the service.
async fn leaves_nothing(steps: Vec<Step>, stops: bool) -> QuotaSettings {
    let (service, _allocator) = service().await;
    let limits = QuotaSettings {
        sessions_max: 4,
        txns_max: 6,
        ops_max: 20,
        lock_bytes_max: 20 << 10,
        ..QuotaSettings::default()
    };
    let (quota, connection) = client(limits);
    let mut client = Client::default();
    for step in steps {
        client.take(step, &service, &connection).await;
        let used = quota.usage();
        assert!(used.sessions_max <= 4 && used.txns_max <= 6, "{used:?}");
        assert!(used.lock_bytes_max <= 20 << 10, "{used:?}");
    }
    if stops {
        service.shutdown(SECOND / 10).await;
    }
    // Longer than any promise. What validates is fenced meanwhile.
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(connection.usage(), client_of_nothing());
    quota.usage()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_client_uses_nothing_once_its_sessions_have_ended_in_whatever_way(
        steps in vec(step(), 0..60),
        stops in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let used = runtime.block_on(leaves_nothing(steps, stops));
        prop_assert_eq!(used, client_of_nothing());
    }
}
