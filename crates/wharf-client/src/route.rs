use std::{fmt, io, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, ToSocketAddrs, UnixStream},
    time::timeout,
};

/// Less than a connection may take: where nobody answers who knows the address, that is the reason to tell.
const LOOK_UP_PATIENCE: Duration = Duration::from_secs(4);

/// A quiet peer is asked whether it is there after `KEEPALIVE_IDLE`; after as many unanswered questions it is gone.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
const USER_TIMEOUT_MS: u32 = 45_000;

/// How a client's bytes reach sandboxd.
#[derive(Debug, Clone)]
pub enum Route {
    /// A socket file on this machine.
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// A host name and a port, looked up at every connection.
    Host(String, u16),
    /// An address that is asked for before every connection: whoever has it later may be another.
    Located(Arc<dyn Locate>),
    /// Somebody else's way, such as a port-forward through an API server.
    Through(Arc<dyn Dial>),
}

/// Knows where one sandbox is.
pub trait Locate: fmt::Debug + fmt::Display + Send + Sync {
    /// Its address now. An error of the kind [`io::ErrorKind::NotFound`] says that it has none any more, and any other one
    /// is told as [`io::ErrorKind::Other`]: nobody could say.
    fn locate(&self) -> Pin<Box<dyn Future<Output = io::Result<SocketAddr>> + Send + '_>>;
}

/// Opens connections to one sandbox.
pub trait Dial: fmt::Debug + fmt::Display + Send + Sync {
    /// A new connection each time. Dropping the future opens none, or one that is closed at once.
    fn dial(&self) -> Pin<Box<dyn Future<Output = io::Result<RouteStream>> + Send + '_>>;
}

/// One connection over a route.
pub type RouteStream = Box<dyn Connection>;

/// A byte stream in both directions.
pub trait Connection: AsyncRead + AsyncWrite + fmt::Debug + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + fmt::Debug + Unpin + Send> Connection for S {}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    /// Calls, which sandboxd reads at once.
    Calls,
    /// Frames of a process, which may leave its input unread for as long as it likes.
    Frames,
}

impl Route {
    pub(crate) async fn connect(&self, carries: Carries) -> io::Result<RouteStream> {
        Ok(match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Through(way) => way.dial().await?,
            Self::Tcp(address) => Box::new(connect_tcp(address, carries).await?),
            Self::Located(place) => Box::new(connect_tcp(locate(place.as_ref()).await?, carries).await?),
            Self::Host(name, port) => Box::new(connect_tcp(look_up(name, *port).await?.as_slice(), carries).await?),
        })
    }

    /// Whether a connection that has carried calls may carry frames after them.
    pub(crate) fn may_change(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Through(_) => true,
            Self::Tcp(_) | Self::Host(..) | Self::Located(_) => false,
        }
    }
}

async fn locate(place: &dyn Locate) -> io::Result<SocketAddr> {
    match timeout(LOOK_UP_PATIENCE, place.locate()).await {
        Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(io::Error::other(error)),
        Ok(located) => located,
        Err(_) => Err(io::Error::other(format!("nobody has said within {} s where it is", LOOK_UP_PATIENCE.as_secs()))),
    }
}

/// The addresses of a name; an error says that it is the name, and not who has it, that was not found.
async fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let looked_up = timeout(LOOK_UP_PATIENCE, tokio::net::lookup_host((name, port))).await;
    let why = match looked_up {
        Ok(Ok(addresses)) => {
            let addresses: Vec<_> = addresses.collect();
            if !addresses.is_empty() {
                return Ok(addresses);
            }
            "it has no address".to_owned()
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no name server has answered within {} s", LOOK_UP_PATIENCE.as_secs()),
    };
    Err(io::Error::new(io::ErrorKind::NotFound, format!("the name `{name}` does not resolve: {why}")))
}

async fn connect_tcp(address: impl ToSocketAddrs, carries: Carries) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    // A node without power sends no end.
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
    match carries {
        Carries::Calls => sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT_MS)?,
        // Linux ends a connection by it also where a living peer only does not read; the silence of frames is watched instead.
        Carries::Frames => {}
    }
    Ok(stream)
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
            Self::Host(name, port) => write!(f, "{name}:{port}"),
            Self::Located(place) => place.fmt(f),
            Self::Through(way) => way.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// RFC 2606 keeps `.invalid` free of names.
    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_told_as_that() {
        let route = Route::Host("wharf-box.agents.svc.invalid".to_owned(), 8080);
        let error = route.connect(Carries::Calls).await.unwrap_err().to_string();
        assert!(error.starts_with("the name `wharf-box.agents.svc.invalid` does not resolve: "), "{error}");
    }

    #[tokio::test]
    async fn tcp_notices_a_peer_without_power_and_bears_one_that_does_not_read_frames() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (carries, user_timeout) in [(Carries::Calls, 45_000), (Carries::Frames, 0)] {
            let stream = connect_tcp(listener.local_addr().unwrap(), carries).await.unwrap();
            assert!(sockopt::socket_keepalive(&stream).unwrap());
            assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), Duration::from_secs(15));
            assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), Duration::from_secs(10));
            assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), 3);
            assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), user_timeout, "{carries:?}");
        }
    }
}
