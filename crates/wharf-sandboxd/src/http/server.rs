//! Listening, and the walls around connections: how many, how large their headers, how long they may idle.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::io::Errno;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, UnixListener},
};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::{core::Core, options::Listen};

/// Bytes of a request line and all headers together.
const HEADER_BYTES: usize = 64 << 10;
const HEADERS: usize = 128;
/// Connections that wait to be accepted, where we make the socket ourselves: as many as elsewhere.
const BACKLOG: u32 = 1024;
/// How long requests may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// An open listener.
#[derive(Debug)]
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Unix,
    Tcp(SocketAddr),
}

impl Listener {
    /// Opens a listener. A unix socket file that nobody listens on any more is replaced; only its owner may connect.
    /// `[::]` takes IPv4 connections too, and them alone where the kernel has no IPv6.
    ///
    /// # Errors
    ///
    /// When the address is taken or cannot be bound.
    pub async fn open(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Tcp(SocketAddr::V6(address)) if address.ip().is_unspecified() => {
                listen_everywhere(address.port(), listen_at_both).await.map(Self::Tcp)
            }
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            Listen::Unix(path) => {
                remove_dead_socket(path).await?;
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                Ok(Self::Unix(listener))
            }
            // A number says nothing to whoever does not own it.
            Listen::Inherited(_) => Err(io::Error::other("an inherited socket is taken over, not opened")),
        }
    }

    /// Listens at a unix socket that our parent has bound.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn inherit(socket: OwnedFd) -> io::Result<Self> {
        if rustix::net::sockopt::socket_domain(&socket)? != rustix::net::AddressFamily::UNIX {
            return Err(io::Error::other("it is not a unix socket"));
        }
        // By us, so that whoever connects is told by the kernel that we are the ones.
        rustix::net::listen(&socket, BACKLOG.cast_signed())?;
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self::Unix)
    }
}

async fn listen_everywhere(port: u16, at_both: impl FnOnce(u16) -> io::Result<TcpListener>) -> io::Result<TcpListener> {
    match at_both(port) {
        Err(error) if lacks_ipv6(&error) => {
            info!(%error, "the kernel has no IPv6; listening at 0.0.0.0 instead of [::]");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        opened => opened,
    }
}

/// At `[::]`, for both families whatever `net.ipv6.bindv6only` says.
fn listen_at_both(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "tcp:{address}"),
                Err(error) => write!(f, "tcp: ({error})"),
            },
            Self::Unix(listener) => match listener.local_addr().ok().as_ref().and_then(|address| address.as_pathname())
            {
                Some(path) => write!(f, "unix:{}", path.display()),
                None => write!(f, "unix:"),
            },
        }
    }
}

async fn remove_dead_socket(path: &Path) -> io::Result<()> {
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there already")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => std::fs::remove_file(path),
    }
}

/// The connections of all listeners, counted against the sandbox's limit.
#[derive(Debug)]
pub struct Connections {
    core: Arc<Core>,
    open: AtomicU32,
}

/// One open connection; dropping it counts it out.
#[derive(Debug)]
struct Counted(Arc<Connections>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    pub fn new(core: Arc<Core>) -> Arc<Self> {
        Arc::new(Self { core, open: AtomicU32::new(0) })
    }

    fn count(self: &Arc<Self>) -> Option<Counted> {
        let counted = Counted(self.clone());
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        (before < self.core.limits().connections).then_some(counted)
    }
}

/// Serves `router` until the sandbox ends; then lets running requests end, at most five seconds long.
///
/// A connection beyond the limit is closed at once, unanswered.
pub async fn serve(listener: Listener, router: Router, connections: Arc<Connections>) {
    let tasks = TaskTracker::new();
    let shutdown = connections.core.shutdown.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener) => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors or memory: those who are connected go first.
                warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(counted) = connections.count() else {
            debug!("refused a connection: too many are open");
            continue;
        };
        let router = router.clone();
        tasks.spawn(async move {
            serve_connection(stream, peer, router, counted.0.core.clone()).await;
            drop(counted);
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        debug!("closed connections that were still busy");
    }
}

/// A byte stream of either family.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn accept(listener: &Listener) -> io::Result<(Box<dyn Stream>, Peer)> {
    match listener {
        Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| (Box::new(stream) as _, Peer::Unix)),
        Listener::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream), Peer::Tcp(address)))
        }
    }
}

async fn serve_connection(stream: Box<dyn Stream>, peer: Peer, router: Router, core: Arc<Core>) {
    let shutdown = core.shutdown.clone();
    // It bounds how long the headers may take, and with them how long a kept-alive connection may idle.
    let idle = Duration::from_secs(core.limits().idle_connection_seconds);
    let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let body_bytes = usize::try_from(core.limits().request_bytes).unwrap_or(usize::MAX);
        DefaultBodyLimit::max(body_bytes).apply(&mut request);
        tower::ServiceExt::oneshot(router.clone(), request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        ended = connection.as_mut() => ended,
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn an_ipv4_client_reaches_a_listener_at_the_unspecified_ipv6_address() {
        let Listener::Tcp(listener) = Listener::open(&"tcp:[::]:0".parse().unwrap()).await.unwrap() else {
            panic!("no TCP listener")
        };
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    }

    #[tokio::test]
    async fn without_ipv6_the_listener_is_at_ipv4_and_any_other_fault_is_told() {
        for (errno, ipv4) in [(Errno::AFNOSUPPORT, true), (Errno::ADDRNOTAVAIL, true), (Errno::ADDRINUSE, false)] {
            match listen_everywhere(0, |_| Err(errno.into())).await {
                Ok(listener) => assert!(ipv4 && listener.local_addr().unwrap().is_ipv4(), "{errno}"),
                Err(error) => assert!(!ipv4 && Errno::from_io_error(&error) == Some(errno), "{errno}: {error}"),
            }
        }
    }
}
