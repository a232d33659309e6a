use std::{fmt, io, net::SocketAddr, path::PathBuf};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// How a client's bytes reach sandboxd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// A socket file on this machine.
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// One connection over a route.
pub type RouteStream = Box<dyn Connection>;

/// A byte stream in both directions.
pub trait Connection: AsyncRead + AsyncWrite + fmt::Debug + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + fmt::Debug + Unpin + Send> Connection for S {}

impl Route {
    pub(crate) async fn connect(&self) -> io::Result<RouteStream> {
        Ok(match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}
