use super::epoch::SKIP_END;
use super::*;
use crate::error::ErrorKind;

#[test]
fn names_are_checked_once_and_for_all() {
    for bad in ["", "a\nb", "\u{7f}", &"x".repeat(256)] {
        let error = TableName::new(bad).expect_err("must be refused");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    assert_eq!(TableName::new("é".repeat(127)).expect("254 bytes").as_str().len(), 254);
}

#[test]
fn a_transaction_id_keeps_whether_it_validates_through_its_text() {
    for validates in [false, true] {
        let id = TxnId::new(ServiceId::new(7 << 32 | 1), TxnNumber::new(42), validates);
        let back: TxnId = id.to_string().parse().expect("own text");
        assert_eq!(back, id);
        assert_eq!(back.validates(), validates);
    }
    assert!("12".parse::<TxnId>().is_err());
}

#[test]
fn numbers_of_one_epoch_are_below_those_of_the_next() {
    let epoch = Epoch::new(EPOCH_END - 2);
    assert!(epoch.end_number().get() <= 1 << 53);
    assert_eq!(epoch.next().expect("one is left").first_number(), epoch.end_number());
    assert!(Epoch::new(EPOCH_END - 1).next().is_err());
}

#[test]
fn a_skip_goes_forward_and_stays_in_range() {
    assert_eq!(Epoch::new(7).skip_ahead(Nonce::new(0)), Epoch::new(7));
    assert_eq!(Epoch::new(7).skip_ahead(Nonce::new(u64::MAX)), Epoch::new(7 + SKIP_END - 1));
    assert_eq!(Epoch::new(EPOCH_END - 3).skip_ahead(Nonce::new(200)), Epoch::new(EPOCH_END - 1));
}

#[test]
fn no_write_follows_the_one_with_the_largest_number() {
    assert!(WriteNumber::FIRST.follows(WriteNumber::default()));
    assert!(!WriteNumber::FIRST.follows(WriteNumber::FIRST));
    let last = WriteNumber::new(u64::MAX);
    assert!(!last.next().follows(last) && !WriteNumber::default().follows(last));
}
