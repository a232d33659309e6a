//! The API server's clock, as its answers tell it: leases of several machines have to go by one clock, and not by theirs.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use http::{HeaderMap, header::DATE};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};

/// What was heard last. Cheap to clone; all clones hear the same.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerClock {
    heard: Arc<Mutex<Option<Heard>>>,
}

#[derive(Debug, Clone, Copy)]
struct Heard {
    /// What the server's clock said, to the second.
    server: Timestamp,
    /// What ours said then.
    here: Timestamp,
    at: Instant,
}

impl ServerClock {
    /// Takes note of the date of an answer that has just come.
    pub(super) fn note(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let Some(server) = date.and_then(|date| rfc2822::parse(date).ok()) else { return };
        let heard = Heard { server: server.timestamp(), here: Timestamp::now(), at: Instant::now() };
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
    }

    pub(super) fn has_been_heard(&self) -> bool {
        self.heard().is_some()
    }

    /// The server's time; this machine's where none of its answers had a date.
    pub(super) fn now(&self) -> Timestamp {
        let passed = |heard: Heard| heard.server + SignedDuration::try_from(heard.at.elapsed()).unwrap_or_default();
        self.heard().map_or_else(Timestamp::now, passed)
    }

    /// By how much this machine's clock is ahead of the server's, to a second or two; negative if it is behind.
    pub(super) fn skew(&self) -> Option<SignedDuration> {
        self.heard().map(|heard| heard.here.duration_since(heard.server))
    }

    fn heard(&self) -> Option<Heard> {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_the_time() {
        let clock = ServerClock::default();
        let none = HeaderMap::from_iter([(DATE, "soon".parse().unwrap())]);
        clock.note(&none);
        assert_eq!((clock.has_been_heard(), clock.skew()), (false, None));
        assert!(clock.now().duration_since(Timestamp::now()).abs() < SignedDuration::from_secs(5));
        clock.note(&HeaderMap::from_iter([(DATE, "Fri, 27 Nov 2026 17:52:44 GMT".parse().unwrap())]));
        let expected: Timestamp = "2026-11-27T17:52:44Z".parse().unwrap();
        assert!(clock.now().duration_since(expected).abs() < SignedDuration::from_secs(5));
        let skew = Timestamp::now().duration_since(expected);
        assert!((clock.skew().unwrap() - skew).abs() < SignedDuration::from_secs(5));
    }
}
