//! [`race`]: tries one after the other, and a slow one beside the next.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

/// The time that a try has alone before the next one begins beside it.
const HEAD_START: Duration = Duration::from_millis(300);

/// The outcome of a try.
#[derive(Debug)]
pub(crate) enum Tried<T, E> {
    /// The result.
    Good(T),
    /// A result that is used if no other try succeeds.
    SecondBest(T),
    /// No result, for this reason if one is known.
    Failed(Option<E>),
}

/// Makes the tries in their order, each alone for 300 ms: if it has neither succeeded nor failed by
/// then, the next one is made beside it. Returns the first result. When all tries are over without
/// one, returns the first second-best result. Fails with the last reason that is known.
///
/// Each try must end by itself.
///
/// # Cancel safety
/// Dropped, it drops the tries.
pub(crate) async fn race<T, E, F>(tries: impl IntoIterator<Item = F>) -> Result<T, Option<E>>
where
    F: Future<Output = Tried<T, E>>,
{
    let mut rest = tries.into_iter().peekable();
    let mut under_way = FuturesUnordered::new();
    let (mut second_best, mut why) = (None, None);
    let mut one_more = true;
    loop {
        if std::mem::take(&mut one_more)
            && let Some(next) = rest.next()
        {
            under_way.push(next);
        }
        let more = rest.peek().is_some();
        tokio::select! {
            Some(tried) = under_way.next() => {
                match tried {
                    Tried::Good(good) => return Ok(good),
                    Tried::SecondBest(found) => drop(second_best.get_or_insert(found)),
                    Tried::Failed(reason) => why = reason.or(why),
                }
                one_more = true;
            }
            () = tokio::time::sleep(HEAD_START), if more => one_more = true,
            else => return second_best.ok_or(why),
        }
    }
}
