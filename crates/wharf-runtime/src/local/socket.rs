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
            let connected = UnixStream::connect(&self.path).await;
            let Some(init) = self.init.as_ref().filter(|init| init.is_running()) else {
                // By this kind a caller knows that nothing will ever answer here: it does not try again for 45 s.
                return Err(io::Error::new(io::ErrorKind::NotFound, "the sandbox has ended"));
            };
            let stream = connected?;
            // Who listens, by the kernel's word: a key goes to nobody else, wherever the path may lead.
            if stream.peer_cred()?.pid() != Some(init.pid) {
                let reason = "who listens there is not the first process of the sandbox";
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, reason));
            }
            Ok(Box::new(stream) as RouteStream)
        })
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    async fn refusal(path: &std::path::Path, init: Option<Running>) -> io::ErrorKind {
        Socket { path: path.to_owned(), init }.dial().await.unwrap_err().kind()
    }

    #[tokio::test]
    async fn that_a_sandbox_has_ended_is_told_apart_from_one_that_does_not_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let init = Running::of(i32::try_from(child.id()).unwrap());
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // It runs, and somebody else listens.
        assert_eq!(refusal(&path, init.clone()).await, io::ErrorKind::ConnectionRefused);
        drop(listener);
        assert_eq!(refusal(&path, init.clone()).await, io::ErrorKind::ConnectionRefused);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(refusal(&path, init).await, io::ErrorKind::NotFound);
        assert_eq!(refusal(&path, None).await, io::ErrorKind::NotFound);
    }
}
