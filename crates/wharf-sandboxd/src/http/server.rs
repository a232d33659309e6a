//! Listening, and the walls around connections: how many, how large their headers, how long they may idle.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::io::Errno;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, UnixListener},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};
use wharf_protocol::ProblemKind;

use super::problem::ApiError;
use crate::{core::Core, options::Listen};

/// Bytes of a request line and all headers together.
const HEADER_BYTES: usize = 64 << 10;
const HEADERS: usize = 128;
/// How long a body is heard that nobody wants any more.
const HEARD_OUT: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted, where we make the socket ourselves: as many as elsewhere.
const BACKLOG: u32 = 1024;
/// How long requests may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// How long a connection that has shown no key stays without a request.
const PATIENCE_WITH_STRANGERS: Duration = Duration::from_secs(10);
/// One of so many connections is kept for those that have shown no key yet, as the owner's next one.
const RESERVE: u32 = 8;

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

/// The connections of all listeners, counted against the sandbox's limit, also those that have become WebSockets.
///
/// ```text
///             a key is shown, there is room           closed
///   stranger ───────────────────────────────▶ known ────────▶
///      │  ▲                                              ▲
///      │  └ a key is shown, no room: answered, closed ───┤
///      └──── too long without a request, or the oldest ──┘
///            when another one comes and there is no room
/// ```
#[derive(Debug)]
pub struct Connections {
    core: Arc<Core>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// By age: numbers only grow.
    open: BTreeMap<u64, Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    standing: Standing,
    /// How many requests run; with HTTP/1 that is one at most.
    busy: bool,
    /// When it came, or its latest request did.
    active: Instant,
    closing: CancellationToken,
}

/// What we know of whoever is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Stranger,
    /// It has shown a key, but there are as many known ones as allowed: it is answered and closed.
    Answered,
    Known,
}

/// One open connection; dropping it counts it out.
#[derive(Debug)]
struct Slot {
    number: u64,
    closing: CancellationToken,
    connections: Arc<Connections>,
}

/// By which a request's handlers say that it has shown a key.
#[derive(Debug, Clone)]
struct Caller(Arc<Slot>);

/// Says that whoever has sent the request with these extensions may use the sandbox.
pub(crate) fn has_shown_a_key(extensions: &http::Extensions) {
    if let Some(Caller(slot)) = extensions.get() {
        slot.connections.introduce(slot.number);
    }
}

impl Table {
    fn count(&self, known: bool) -> u32 {
        self.open.values().filter(|entry| (entry.standing == Standing::Known) == known).count() as u32
    }

    /// The one to close so that another stranger may come: the oldest that nobody would miss.
    fn oldest_stranger(&self) -> Option<u64> {
        let missed = |entry: &Entry| match entry.standing {
            Standing::Stranger => false,
            Standing::Answered => entry.busy,
            Standing::Known => true,
        };
        self.open.iter().find(|(_, entry)| !missed(entry)).map(|(number, _)| *number)
    }
}

fn reserve(limit: u32) -> u32 {
    (limit / RESERVE).max(1)
}

impl Connections {
    pub fn new(core: Arc<Core>) -> Arc<Self> {
        Arc::new(Self { core, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection in, and the oldest stranger out where that makes room; `None` if nothing does.
    fn admit(self: &Arc<Self>) -> Option<Slot> {
        let limit = self.core.limits().connections;
        let mut table = self.table();
        let crowded = |table: &Table| table.open.len() as u32 >= limit || table.count(false) >= reserve(limit);
        while crowded(&table) {
            let oldest = table.oldest_stranger()?;
            if let Some(entry) = table.open.remove(&oldest) {
                debug!("closed the oldest connection that has shown no key: another one came");
                entry.closing.cancel();
            }
        }
        let number = table.next;
        table.next += 1;
        let closing = CancellationToken::new();
        let entry =
            Entry { standing: Standing::Stranger, busy: false, active: Instant::now(), closing: closing.clone() };
        table.open.insert(number, entry);
        Some(Slot { number, closing, connections: self.clone() })
    }

    fn introduce(&self, number: u64) {
        let limit = self.core.limits().connections;
        let mut table = self.table();
        if table.open.get(&number).is_none_or(|entry| entry.standing == Standing::Known) {
            return;
        }
        let room = table.count(true) < (limit - reserve(limit)).max(1);
        if let Some(entry) = table.open.get_mut(&number) {
            entry.standing = if room { Standing::Known } else { Standing::Answered };
        }
    }

    /// Notes a request's beginning or end; gives what is known of its sender.
    fn request(&self, number: u64, busy: bool) -> Standing {
        let mut table = self.table();
        let Some(entry) = table.open.get_mut(&number) else { return Standing::Stranger };
        entry.busy = busy;
        if busy {
            entry.active = Instant::now();
        }
        entry.standing
    }
}

impl Slot {
    /// Waits until this is a stranger that has asked for nothing for so long.
    async fn has_bored(&self, patience: Duration) {
        loop {
            let wake = match self.connections.table().open.get(&self.number) {
                Some(entry) if entry.standing == Standing::Known => None,
                Some(entry) if entry.standing == Standing::Answered && entry.busy => Some(Instant::now() + patience),
                Some(entry) => Some(entry.active + patience),
                None => Some(Instant::now()),
            };
            match wake {
                None => std::future::pending().await,
                Some(at) if at <= Instant::now() => return,
                Some(at) => tokio::time::sleep_until(at).await,
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.table().open.remove(&self.number);
    }
}

/// Serves `router` until the sandbox ends; then lets running requests end, at most five seconds long.
///
/// A connection beyond the limit is closed at once, unanswered.
pub async fn serve(listener: Listener, router: Router, connections: Arc<Connections>) {
    let tasks = TaskTracker::new();
    let closing = CancellationToken::new();
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
        let Some(slot) = connections.admit() else {
            debug!("refused a connection: too many are open");
            continue;
        };
        let (router, closing) = (router.clone(), closing.clone());
        tasks.spawn(async move {
            let evicted = slot.closing.clone();
            tokio::select! {
                biased;
                () = closing.cancelled() => {}
                () = evicted.cancelled() => {}
                () = serve_connection(stream, peer, router, slot) => {}
            }
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        debug!("closing connections that are still busy");
        closing.cancel();
        tasks.wait().await;
    }
}

/// A connection's bytes. It is counted as long as anybody has it, also a WebSocket after its HTTP connection is over.
struct Counted {
    stream: Box<dyn Stream>,
    _slot: Arc<Slot>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
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

async fn serve_connection(stream: Box<dyn Stream>, peer: Peer, router: Router, slot: Slot) {
    let slot = Arc::new(slot);
    let core = slot.connections.core.clone();
    let shutdown = core.shutdown.clone();
    // It bounds how long the headers may take, and with them how long a kept-alive connection may idle.
    let idle = Duration::from_secs(core.limits().idle_connection_seconds);
    let stream = Counted { stream, _slot: slot.clone() };
    let caller = Caller(slot.clone());
    let service = tower::service_fn(move |request| answer(request, peer, router.clone(), caller.clone()));
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
        () = slot.has_bored(PATIENCE_WITH_STRANGERS.min(idle)) => Ok(()),
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}

/// Answers one request; a caller beyond the number of those that may stay is answered and closed.
async fn answer(
    mut request: http::Request<hyper::body::Incoming>,
    peer: Peer,
    router: Router,
    caller: Caller,
) -> Result<Response, std::convert::Infallible> {
    let slot = caller.0.clone();
    let connections = &slot.connections;
    connections.request(slot.number, true);
    if header_bytes(&request) > HEADER_BYTES {
        // hyper refuses what does not fit its buffer, and lets some more pass.
        return Ok((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, [(header::CONNECTION, "close")]).into_response());
    }
    request.extensions_mut().insert(ConnectInfo(peer));
    request.extensions_mut().insert(caller);
    let body_bytes = usize::try_from(connections.core.limits().request_bytes).unwrap_or(usize::MAX);
    DefaultBodyLimit::max(body_bytes).apply(&mut request);
    let request = request.map(|body| axum::body::Body::new(Heard(Some(body))));
    let mut response = tower::ServiceExt::oneshot(router, request).await?;
    if connections.request(slot.number, false) == Standing::Answered {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let limit = connections.core.limits().connections;
            let detail = format!("as many connections as allowed are open already ({limit}); close some of them");
            response = ApiError::new(ProblemKind::LimitReached, detail).into_response();
        }
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// A body that is heard out, for a while, when its handler has answered before its end: a connection that is closed under a
/// sender fails it before it has read the answer.
struct Heard(Option<hyper::body::Incoming>);

impl hyper::body::Body for Heard {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.0.as_ref().map(hyper::body::Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take().filter(|body| !hyper::body::Body::is_end_stream(body)) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(tokio::time::timeout(HEARD_OUT, async move {
            while let Some(Ok(_)) = http_body_util::BodyExt::frame(&mut body).await {}
        }));
    }
}

/// As many bytes as the request line and the headers have without their separators.
fn header_bytes<B>(request: &http::Request<B>) -> usize {
    let uri = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    request.headers().iter().fold(uri, |bytes, (name, value)| bytes + name.as_str().len() + value.len())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn only_its_owner_may_connect_to_a_unix_socket_and_a_dead_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let listen: Listen = format!("unix:{}", path.display()).parse().unwrap();
        for _ in 0..2 {
            let listening = Listener::open(&listen).await.unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let taken = Listener::open(&listen).await.unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
            drop(listening);
        }
    }

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
