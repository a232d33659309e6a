use std::{fmt, io, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// How a client's bytes reach sandboxd.
#[derive(Debug, Clone)]
pub enum Route {
    /// A socket file on this machine.
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// A host name and a port, looked up at every connection.
    Host(String, u16),
    /// Somebody else's way, such as a port-forward through an API server.
    Through(Arc<dyn Dial>),
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

impl Route {
    pub(crate) async fn connect(&self) -> io::Result<RouteStream> {
        let stream = match self {
            Self::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Through(way) => return way.dial().await,
            Self::Tcp(address) => TcpStream::connect(address).await?,
            Self::Host(name, port) => TcpStream::connect((name.as_str(), *port)).await?,
        };
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
            Self::Host(name, port) => write!(f, "{name}:{port}"),
            Self::Through(way) => way.fmt(f),
        }
    }
}
