//! The sessions of a sandbox.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use wharf_protocol::{ProblemKind, SessionId};

use super::{Session, SessionError, SessionSettings, View};
use crate::{
    core::{Core, random_hex},
    http::problem::ApiError,
};

/// All sessions by id, at most as many as allowed.
#[derive(Debug)]
pub struct Sessions {
    limit: usize,
    table: Mutex<HashMap<SessionId, Slot>>,
    /// Wakes whoever waits for a session that is being started.
    settled: Notify,
}

#[derive(Debug)]
enum Slot {
    /// Counted and named, but its shell is only being started.
    Starting,
    Open(Arc<Session>),
}

impl Sessions {
    pub fn new(limit: usize) -> Self {
        Self { limit, table: Mutex::new(HashMap::new()), settled: Notify::new() }
    }

    /// An id that no session has.
    pub fn new_id(&self) -> SessionId {
        format!("s{}", random_hex(6)).parse().expect("a letter and hexadecimal digits are an id")
    }

    pub fn find(&self, id: &SessionId) -> Option<Arc<Session>> {
        match self.table().get(id) {
            Some(Slot::Open(session)) => Some(session.clone()),
            Some(Slot::Starting) | None => None,
        }
    }

    /// The same, once nobody is starting one of this id any more.
    ///
    /// # Cancel safety
    ///
    /// Safe: waiting changes nothing.
    pub async fn find_settled(&self, id: &SessionId) -> Option<Arc<Session>> {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            match self.table().get(id) {
                Some(Slot::Starting) => {}
                Some(Slot::Open(session)) => return Some(session.clone()),
                None => return None,
            }
            settled.await;
        }
    }

    pub fn list(&self) -> Vec<Arc<Session>> {
        let table = self.table();
        table
            .values()
            .filter_map(|slot| if let Slot::Open(session) = slot { Some(session.clone()) } else { None })
            .collect()
    }

    pub fn count(&self) -> usize {
        self.table().len()
    }

    /// Starts a session and keeps it in the table.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::LimitReached`] if there are as many as allowed, [`ProblemKind::Conflict`] if a session of this id
    /// is just being started, or why its shell could not be started.
    ///
    /// # Cancel safety
    ///
    /// Safe: a dropped call leaves no session behind.
    pub async fn open<V: View + 'static>(
        &self,
        settings: SessionSettings,
        view: Arc<Mutex<V>>,
        core: &Core,
    ) -> Result<Arc<Session>, ApiError> {
        let id = settings.id.clone();
        {
            let mut table = self.table();
            if table.contains_key(&id) {
                return Err(ApiError::new(ProblemKind::Conflict, format!("session `{id}` is just being started")));
            }
            if table.len() >= self.limit {
                return Err(ApiError::new(
                    ProblemKind::LimitReached,
                    format!("as many sessions as allowed exist already ({})", self.limit),
                ));
            }
            table.insert(id.clone(), Slot::Starting);
        }
        let mut reservation = Reservation { sessions: self, id: Some(id.clone()) };
        let session = Session::start(settings, view, core.tasks.clone(), core.shutdown.child_token()).await?;
        core.bound()?.output.include(session.log());
        self.table().insert(id, Slot::Open(session.clone()));
        reservation.id = None;
        self.settled.notify_waiters();
        Ok(session)
    }

    /// Takes a closed session out of the table, and nobody who has its id by now.
    pub fn forget(&self, session: &Session) {
        let mut table = self.table();
        if matches!(table.get(session.id()), Some(Slot::Open(open)) if std::ptr::eq(Arc::as_ptr(open), session)) {
            table.remove(session.id());
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<SessionId, Slot>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the place in the table back if the session does not come to be.
struct Reservation<'a> {
    sessions: &'a Sessions,
    id: Option<SessionId>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.sessions.table().remove(&id);
            self.sessions.settled.notify_waiters();
        }
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        let kind = match &error {
            SessionError::Busy { .. }
            | SessionError::NothingRunning { .. }
            | SessionError::NotRead { .. }
            | SessionError::Reset { .. }
            | SessionError::Closed => ProblemKind::Conflict,
            SessionError::OpenTerminal { .. }
            | SessionError::StartShell { .. }
            | SessionError::Write { .. }
            | SessionError::NoPrompt { .. }
            | SessionError::EndedAtStart { .. } => ProblemKind::OperatingSystem,
        };
        let mut detail = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            detail.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Self::new(kind, detail)
    }
}
