//! Two programs in one network that end together although neither sees the other's processes: one keeps a connection to an
//! abstract socket, which the kernel closes at its end, and the other waits for that.

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
};

/// How long the other one may take to come.
const PATIENCE: Duration = Duration::from_secs(600);

/// Waits until the other one has come and has ended, or until SIGTERM.
///
/// # Errors
///
/// When the socket cannot be made.
pub(crate) async fn accompany(name: &str) -> anyhow::Result<()> {
    let listener = SocketAddr::from_abstract_name(name)
        .and_then(|address| UnixListener::bind_addr(&address))
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .with_context(|| format!("could not listen at the abstract socket `{name}`"))?;
    let listener = tokio::net::UnixListener::from_std(listener).context("could not wait for connections")?;
    let mut terminate = signal(SignalKind::terminate()).context("could not handle SIGTERM")?;
    let ended = async {
        // What else runs there may come too, but not before, and it ends with it.
        let (mut stream, _) = listener.accept().await.context("could not take a connection")?;
        let mut ignored = [0; 64];
        while stream.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
        Ok(())
    };
    tokio::select! {
        ended = tokio::time::timeout(PATIENCE, ended) => ended.unwrap_or(Ok(())),
        _ = terminate.recv() => Ok(()),
    }
}

/// A connection to whoever waits for our end. Without one we go on: then nobody does.
pub(crate) fn meet(name: &str) -> Option<UnixStream> {
    let met = SocketAddr::from_abstract_name(name).and_then(|address| UnixStream::connect_addr(&address));
    met.inspect_err(|error| tracing::warn!(%error, "nobody waits for our end")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_accompanies_ends_with_the_other_one_and_not_before() {
        let name = format!("wharf-test-{}", std::process::id());
        let waiting = tokio::spawn({
            let name = name.clone();
            async move { accompany(&name).await }
        });
        let met = loop {
            match meet(&name) {
                Some(met) => break met,
                None => tokio::task::yield_now().await,
            }
        };
        let second = meet(&name).unwrap();
        assert!(!waiting.is_finished());
        drop(met);
        waiting.await.unwrap().unwrap();
        drop(second);
    }
}
