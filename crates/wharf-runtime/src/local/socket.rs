//! The way to a local sandboxd: a socket in a directory that only the host can change.

use std::{fmt, io, path::PathBuf, pin::Pin, sync::Arc};

use tokio::net::UnixStream;
use wharf_client::{Dial, Route, RouteStream};

use super::{Record, process::Running};

/// A socket at which nobody but the first process of the sandbox is spoken to.
#[derive(Debug)]
struct Socket {
    path: PathBuf,
    init: Option<Running>,
}

impl Record {
    /// The way to the sandbox's sandboxd.
    pub fn route(&self) -> Route {
        Route::Through(Arc::new(Socket { path: self.socket.clone(), init: self.init.clone() }))
    }
}

impl Dial for Socket {
    fn dial(&self) -> Pin<Box<dyn Future<Output = io::Result<RouteStream>> + Send + '_>> {
        Box::pin(async {
            let stream = UnixStream::connect(&self.path).await?;
            // Who listens, by the kernel's word: a key goes to nobody else, wherever the path may lead.
            let peer = stream.peer_cred()?.pid();
            match &self.init {
                Some(init) if peer == Some(init.pid) && init.is_running() => Ok(Box::new(stream) as RouteStream),
                _ => {
                    let reason = "who listens there is not the first process of the sandbox";
                    Err(io::Error::new(io::ErrorKind::ConnectionRefused, reason))
                }
            }
        })
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}
