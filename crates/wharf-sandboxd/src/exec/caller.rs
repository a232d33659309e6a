//! Whether the caller of an exec is there, may come back, or has gone for good.
//!
//! ```text
//!            arrives                     its connection breaks
//!   awaited ─────────▶ there ◀─────────────────────────────▶ awaited ──▶ gone, after the grace
//!                        └── leaves on purpose ─────────────────────────▶ gone, at once
//! ```

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// The caller's connections to one exec.
#[derive(Debug, Clone)]
pub(super) struct Presence(Arc<watch::Sender<State>>);

#[derive(Debug, Clone, Copy)]
struct State {
    connections: usize,
    /// Since when there is none.
    awaited_since: Instant,
    left_on_purpose: bool,
}

/// One connection of the caller. Dropping it is a broken connection.
#[derive(Debug)]
pub struct Here {
    presence: Presence,
    left_on_purpose: bool,
}

impl Presence {
    /// The caller has not come yet.
    pub(super) fn new() -> Self {
        let state = State { connections: 0, awaited_since: Instant::now(), left_on_purpose: false };
        Self(Arc::new(watch::Sender::new(state)))
    }

    pub(super) fn arrive(&self) -> Here {
        self.0.send_modify(|state| {
            state.connections += 1;
            state.left_on_purpose = false;
        });
        Here { presence: self.clone(), left_on_purpose: false }
    }

    pub(super) fn is_here(&self) -> bool {
        self.0.borrow().connections > 0
    }

    /// Resolves once the caller has gone: on purpose, or for as long as `grace`.
    ///
    /// # Cancel safety
    ///
    /// Safe: waiting changes nothing.
    pub(super) async fn gone(&self, grace: Duration) {
        let mut states = self.0.subscribe();
        loop {
            let state = *states.borrow_and_update();
            let patience = async {
                if state.connections > 0 {
                    std::future::pending().await
                } else if !state.left_on_purpose {
                    // A grace beyond all time is one that never ends.
                    match state.awaited_since.checked_add(grace) {
                        Some(until) => sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                }
            };
            tokio::select! {
                biased;
                // The sender lives as long as `self`.
                _ = states.changed() => {}
                () = patience => return,
            }
        }
    }
}

impl Here {
    /// Says that the caller will not come back.
    pub fn leave(mut self) {
        self.left_on_purpose = true;
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.presence.0.send_modify(|state| {
            state.connections -= 1;
            state.awaited_since = Instant::now();
            state.left_on_purpose = self.left_on_purpose;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(45);

    async fn gone_after(presence: &Presence) -> u64 {
        let before = Instant::now();
        presence.gone(GRACE).await;
        before.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_never_comes_is_gone_after_the_grace() {
        assert_eq!(gone_after(&Presence::new()).await, 45);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_connection_has_the_grace_anew_and_a_close_has_none() {
        let presence = Presence::new();
        let here = presence.arrive();
        let (seconds, ()) = tokio::join!(gone_after(&presence), async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            drop(here);
            tokio::time::sleep(Duration::from_secs(44)).await;
            let again = presence.arrive();
            tokio::time::sleep(Duration::from_secs(100)).await;
            let other = presence.arrive();
            again.leave();
            tokio::time::sleep(Duration::from_secs(100)).await;
            other.leave();
        });
        assert_eq!(seconds, 344, "the one who is left counts");
    }
}
