//! Exhaustive checks of a model, breadth first, so that the schedule of a violation is a short one.

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// Visits every state of a model, and asserts that there are at least `states`, that nothing
/// violates a property, and that the model reaches what it says it sometimes does.
pub(crate) fn holds<M>(model: M, states: usize)
where
    M: Model<
            State: Debug + Hash + Clone + PartialEq + Send + Sync,
            Action: Debug + Clone + PartialEq,
        > + Send
        + Sync
        + 'static,
{
    let checker = model.checker().spawn_bfs().join();
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match (property.expectation, found) {
            (Expectation::Sometimes, None) => panic!("never: {}", property.name),
            (Expectation::Sometimes, Some(_)) | (_, None) => {}
            (_, Some(path)) => {
                panic!("violated: {} by {:?}", property.name, path.into_actions())
            }
        }
    }
    assert!(checker.is_done(), "the check is not exhaustive");
    println!("{} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
    assert!(checker.unique_state_count() >= states, "{}", checker.unique_state_count());
}

/// Asserts that a model violates this property, and prints the schedule.
pub(crate) fn violates<M>(model: M, name: &'static str)
where
    M: Model<
            State: Debug + Hash + Clone + PartialEq + Send + Sync,
            Action: Debug + Clone + PartialEq,
        > + Send
        + Sync
        + 'static,
{
    let found = HasDiscoveries::AnyOf([name].into());
    let checker = model.checker().finish_when(found).spawn_bfs().join();
    let schedule = checker.discovery(name).unwrap_or_else(|| panic!("holds: {name}"));
    println!("{name}: violated by {:?}", schedule.into_actions());
}
