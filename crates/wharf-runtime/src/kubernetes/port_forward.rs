//! One port of a pod, through the API server, as a stream of bytes.
//!
//! kube's own forwarder reads 4 KiB at a time, and each time is a message that API server, kubelet and container runtime pass
//! on one by one (kube 5.0.0). It also keeps to itself why a stream has ended.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Sink as _, Stream as _};
use http::Request;
use kube::Client;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Bytes, Error, Message},
};
use wharf_client::RouteStream;

use super::reason::shown;

/// What a pod's port says, and what is said to it.
const DATA: u8 = 0;
/// Why nothing more comes.
const TROUBLE: u8 = 1;
/// Each channel begins with its port.
const PORT_BYTES: usize = 2;
/// The longest message that is sent.
const LONGEST: usize = 128 << 10;

/// Opens a connection to what `request` says, which is to name one port.
pub(super) async fn open(client: &Client, request: Request<Vec<u8>>) -> kube::Result<RouteStream> {
    Ok(Box::new(PortForward::new(client.connect(request).await?.into_stream())))
}

#[derive(Debug)]
struct PortForward<S> {
    socket: WebSocketStream<S>,
    /// Which channels have named their port.
    begun: [bool; 2],
    /// What has come and was not read.
    unread: Bytes,
    ended: bool,
}

impl<S> PortForward<S> {
    fn new(socket: WebSocketStream<S>) -> Self {
        Self { socket, begun: [false; 2], unread: Bytes::new(), ended: false }
    }

    /// Takes what has come over a channel.
    fn take(&mut self, mut message: Bytes) -> io::Result<()> {
        let Some(&channel) = message.first() else { return Ok(()) };
        let begun = self.begun.get_mut(usize::from(channel));
        let begun = begun.ok_or_else(|| io::Error::other(format!("the port-forward has no channel {channel}")))?;
        let named = if std::mem::replace(begun, true) { 0 } else { PORT_BYTES };
        let content = message.split_off(message.len().min(1 + named));
        match channel {
            TROUBLE if !content.is_empty() => Err(io::Error::other(shown(&String::from_utf8_lossy(&content)))),
            TROUBLE => Ok(()),
            _ => {
                self.unread = content;
                Ok(())
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for PortForward<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.ended {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(message))) => self.take(message)?,
                Some(Ok(Message::Close(_))) | None => self.ended = true,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for PortForward<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let data = &data[..data.len().min(LONGEST)];
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let message = [&[DATA], data].concat();
        Pin::new(&mut self.socket).start_send(Message::binary(message)).map_err(broken)?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    /// Ends both directions: the protocol knows no half-closed port.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::new(io::ErrorKind::ConnectionAborted, other),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    /// A port-forward, and the API server's end of it, which has named the port on both channels.
    async fn opened() -> (PortForward<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (ours, theirs) = duplex(4096);
        let ours = PortForward::new(WebSocketStream::from_raw_socket(ours, Role::Client, None).await);
        let mut theirs = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
        for channel in [DATA, TROUBLE] {
            theirs.send(Message::binary(vec![channel, 0x90, 0x1f])).await.unwrap();
        }
        (ours, theirs)
    }

    fn patterned(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 251) as u8 ^ at as u8).collect()
    }

    /// 4 KiB at a time, 1 GB took 53 s.
    #[tokio::test]
    async fn what_is_written_goes_in_few_messages_and_is_what_was_written() {
        const LENGTH: usize = 3 << 20;
        let (mut ours, mut theirs) = opened().await;
        let sent = patterned(LENGTH);
        let write = async {
            ours.write_all(&sent).await.unwrap();
            ours.flush().await.unwrap();
        };
        let read = async {
            let (mut came, mut messages) = (Vec::new(), 0);
            while came.len() < LENGTH {
                let Some(Ok(Message::Binary(message))) = theirs.next().await else { panic!("it ended") };
                assert_eq!(message[0], DATA);
                came.extend_from_slice(&message[1..]);
                messages += 1;
            }
            assert!(came == sent && messages <= LENGTH / LONGEST + 1, "{messages} messages");
        };
        tokio::join!(write, read);
    }

    #[tokio::test]
    async fn what_comes_is_read_in_any_pieces_until_the_end_and_without_the_ports() {
        let (mut ours, mut theirs) = opened().await;
        let sent = patterned(100_000);
        let write = async {
            for piece in sent.chunks(33_333) {
                theirs.send(Message::Ping(Bytes::new())).await.unwrap();
                theirs.send(Message::binary([&[DATA], piece].concat())).await.unwrap();
                // A message without content says nothing, and ends nothing.
                theirs.send(Message::binary(vec![DATA])).await.unwrap();
            }
            theirs.send(Message::Close(None)).await.unwrap();
        };
        let mut came = Vec::new();
        let read = async {
            let mut piece = [0; 777];
            loop {
                match ours.read(&mut piece).await.unwrap() {
                    0 => break,
                    count => came.extend_from_slice(&piece[..count]),
                }
            }
        };
        tokio::join!(write, read);
        assert!(came == sent);
    }

    #[tokio::test]
    async fn why_it_ended_is_told_and_a_cut_is_no_end() {
        let (mut ours, mut theirs) = opened().await;
        let why = "error forwarding port 8080 to pod p:\n\x1b[31mconnection refused";
        theirs.send(Message::binary([&[TROUBLE], why.as_bytes()].concat())).await.unwrap();
        let error = ours.read_u8().await.unwrap_err().to_string();
        assert_eq!(error, "error forwarding port 8080 to pod p: [31mconnection refused");

        let (mut ours, theirs) = opened().await;
        drop(theirs);
        let error = ours.read(&mut [0]).await.unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");

        let (mut ours, mut theirs) = opened().await;
        theirs.send(Message::binary(vec![7, 1])).await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap_err().to_string(), "the port-forward has no channel 7");
    }

    #[tokio::test]
    async fn it_reads_while_nobody_takes_what_is_written() {
        let (ours, mut theirs) = opened().await;
        let (mut reader, mut writer) = tokio::io::split(ours);
        let stuck = tokio::spawn(async move { writer.write_all(&patterned(1 << 20)).await });
        theirs.send(Message::binary(vec![DATA, 42])).await.unwrap();
        assert_eq!(reader.read_u8().await.unwrap(), 42);
        assert!(!stuck.is_finished());
        drop(theirs);
        stuck.await.unwrap().unwrap_err();
    }
}
