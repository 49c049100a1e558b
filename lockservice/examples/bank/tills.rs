//! Clerks, whose work is protected by its locks alone: they never validate a commit.
//!
//! A clerk holds two tills for a while and moves money between them, again and again. It must not
//! be interrupted: a restart of the server leaves it its locks (P6).

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lockservice::{Error, ErrorKind, LockGuard, LockSpec, Session};
use rand::{Rng as _, rngs::SmallRng};

use crate::workers::{Bank, row};

/// The pause between two moves, and the most moves under one lock.
const PAUSE: Duration = Duration::from_millis(10);
const MOVES_MAX: u32 = 100;

/// Why a clerk had to stop in the middle of its work.
enum Interrupted {
    Locks(Error),
    Journal,
}

impl Bank {
    /// Works as a clerk until the bank closes.
    pub(crate) async fn work_at_tills(&self, mut rng: SmallRng) -> Result<(), Error> {
        while !self.stop.load(Relaxed) {
            let session = match self.connect().await {
                Ok((_, session)) => session,
                // The bank has not opened yet, or the server has just gone.
                Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let why = loop {
                if self.stop.load(Relaxed) {
                    // Courtesy only: the session would lapse by itself.
                    let _ = session.close().await;
                    return Ok(());
                }
                if let Err(why) = self.serve_customers(&session, &mut rng).await {
                    break why;
                }
            };
            self.counters.interrupted_clerks.fetch_add(1, Relaxed);
            match why {
                Interrupted::Locks(why) => eprintln!("bank: a clerk was interrupted: {why}"),
                Interrupted::Journal => eprintln!("bank: a clerk was refused by the journal"),
            }
        }
        Ok(())
    }

    async fn serve_customers(
        &self,
        session: &Session,
        rng: &mut SmallRng,
    ) -> Result<(), Interrupted> {
        let first = rng.random_range(0..self.tills);
        let second = (first + rng.random_range(1..self.tills)) % self.tills;
        let (from, to) = (self.accounts + first, self.accounts + second);
        let spec = LockSpec::new(self.till_table.clone(), vec![row(from), row(to)]);
        let lock = match session.lock(spec).await {
            Ok(lock) => lock,
            // It has waited for as long as the server allows: nothing was interrupted.
            Err(why) if why.kind() == ErrorKind::Timeout => return Ok(()),
            Err(why) => return Err(Interrupted::Locks(why)),
        };
        for _ in 0..rng.random_range(1..=MOVES_MAX) {
            if self.stop.load(Relaxed) {
                break;
            }
            self.move_between_tills(&lock, from, to, rng.random_range(1..=10))?;
            tokio::select! {
                why = lock.lost() => return Err(Interrupted::Locks(why)),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
        lock.release().await.map_err(Interrupted::Locks)
    }

    fn move_between_tills(
        &self,
        lock: &LockGuard,
        from: usize,
        to: usize,
        amount: i64,
    ) -> Result<(), Interrupted> {
        let token = lock.token().get();
        let balances = self.journal.read(from, token).and_then(|from_balance| {
            let to_balance = self.journal.read(to, token)?;
            self.journal
                .write(&[(from, token, from_balance - amount), (to, token, to_balance + amount)])
        });
        balances.map_err(|_| Interrupted::Journal)?;
        self.counters.till_moves.fetch_add(1, Relaxed);
        Ok(())
    }
}
