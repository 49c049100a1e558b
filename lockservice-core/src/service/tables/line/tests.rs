use super::*;
use crate::bind::Bind;
use crate::id::TxnNumber;
use crate::key::Key;
use crate::table::{EngineSettings, LockEngine};

fn table(number: usize) -> TableRef {
    TableRef::new("g", format!("t{number}")).expect("names")
}

fn join(lines: &mut Lines, number: usize) -> Joined {
    let requested = Requested {
        in_flight: CallInFlight::new(Arc::new(crate::service::txn::TxnRecord::new(
            TxnId::new(ServiceId::new(1), TxnNumber::new(1), false),
            "".into(),
            None,
        ))),
        ancestors: Vec::new(),
        items: vec![LockItem::Row(Key::new("k").expect("a key"))],
        mode: LockMode::Exclusive,
        wait: WaitPolicy::Wait,
        escalate: false,
        since: Time::ZERO,
        came: Time::ZERO,
    };
    let waiter = Waiter { requested, response: oneshot::channel().0 };
    lines.join(&table(number), waiter, usize::MAX).expect("room")
}

fn desert(lines: &mut Lines, number: usize) -> Desertion {
    let joined = join(lines, number);
    assert_eq!(lines.desert(&table(number)), Desertion::Occupied);
    lines.leave(&table(number), joined.position, Time::ZERO).expect("it stands there");
    lines.desert(&table(number))
}

#[test]
fn while_the_calls_of_a_line_are_made_its_bind_is_known() {
    let tables = crate::service::tables::Tables::default();
    join(&mut tables.lines.lock(), 1);
    assert!(tables.served(&table(1)).is_none(), "it is not bound yet");
    let bind = Bind {
        table: table(1),
        id: crate::id::TableId::new(1),
        partition: 0,
        owner: ServiceId::new(1),
        version: crate::id::BindVersion::new(1),
        slot: crate::bind::BindSlot::NONE,
    };
    let engine = LockEngine::new(EngineSettings::default());
    let bound = engine.install(bind, None, None).expect("the first version");
    tables.lines.lock().hand(&table(1), &bound);
    // Its call may have been granted by now, and its caller may let the lock go.
    assert!(tables.lines.lock().next(&table(1)).is_some());
    assert!(tables.owned(&table(1)).is_none() && tables.served(&table(1)).is_some());
}

#[test]
fn deserted_lines_are_bounded_and_counted_until_they_end_or_somebody_comes() {
    let mut lines = Lines::default();
    for number in 0..DESERTED_MAX {
        assert_eq!(desert(&mut lines, number), Desertion::Deserted);
        assert_eq!(lines.desert(&table(number)), Desertion::Deserted, "it is counted once");
    }
    assert_eq!(desert(&mut lines, DESERTED_MAX), Desertion::Ended);
    assert_eq!(lines.standing_in(&table(DESERTED_MAX)), None);
    assert!(join(&mut lines, 0).new_line.is_none(), "its binder lives");
    assert!(lines.end_if_deserted(&table(1)));
    for number in DESERTED_MAX..DESERTED_MAX + 2 {
        assert_eq!(desert(&mut lines, number), Desertion::Deserted);
    }
    assert_eq!(desert(&mut lines, DESERTED_MAX + 2), Desertion::Ended);
}
