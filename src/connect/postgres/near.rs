//! TCP to a server on this machine, of which the runtime hears only while somebody waits.
//!
//! A socket that the runtime watches wakes it with every packet, also while nobody wants to read
//! yet. One that lets a log gather must not be told of each piece; so it is watched from a wait's
//! begin to its end, and not between.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream as Watched;

pub(crate) struct Near {
    socket: Arc<TcpStream>,
    /// While somebody waits; one for each way, since both waits may begin and end apart.
    reading: Option<Watched>,
    writing: Option<Watched>,
}

impl Near {
    pub fn new(stream: Watched) -> io::Result<Near> {
        Ok(Near { socket: Arc::new(stream.into_std()?), reading: None, writing: None })
    }

    pub fn socket(&self) -> &Arc<TcpStream> {
        &self.socket
    }

    pub fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = match (&*self.socket).read(into.initialize_unfilled()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(Pin::new(watched(&mut self.reading, &self.socket)?).poll_read(cx, into))
            }
            read => read.map(|read| into.advance(read)),
        };
        self.reading = None;
        Poll::Ready(read)
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = match (&*self.socket).write(data) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(Pin::new(watched(&mut self.writing, &self.socket)?).poll_write(cx, data))
            }
            written => written,
        };
        self.writing = None;
        Poll::Ready(written)
    }
}

fn watched<'a>(watched: &'a mut Option<Watched>, socket: &TcpStream) -> io::Result<&'a mut Watched> {
    match watched {
        Some(watched) => Ok(watched),
        none => Ok(none.insert(Watched::from_std(socket.try_clone()?)?)),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    async fn pair() -> (TcpStream, Near) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, Near::new(near).unwrap())
    }

    async fn read(near: &mut Near) -> io::Result<Vec<u8>> {
        let mut room = vec![0; 100];
        let mut into = ReadBuf::new(&mut room);
        poll_fn(|cx| near.poll_read(cx, &mut into)).await?;
        Ok(into.filled().to_vec())
    }

    #[tokio::test]
    async fn what_comes_while_somebody_waits_is_told_and_so_is_the_end() {
        let (mut far, mut near) = pair().await;
        for word in [&b"one"[..], b"two"] {
            assert!(timeout(Duration::from_millis(20), read(&mut near)).await.is_err(), "nothing is there");
            assert!(near.reading.is_some(), "watched");
            far.write_all(word).await.unwrap();
            assert_eq!(read(&mut near).await.unwrap(), word);
            assert!(near.reading.is_none(), "nobody waits");
        }
        drop(far);
        assert_eq!(read(&mut near).await.unwrap(), b"");
    }

    #[tokio::test]
    async fn a_writer_waits_for_room_whatever_readers_do() {
        let (mut far, mut near) = pair().await;
        let piece = vec![7; 1 << 20];
        let mut sent = 0;
        let full = loop {
            match timeout(Duration::from_millis(100), poll_fn(|cx| near.poll_write(cx, &piece))).await {
                Ok(written) => sent += written.unwrap(),
                Err(full) => break full,
            }
        };
        assert!(near.writing.is_some(), "{full}");
        assert!(timeout(Duration::from_millis(20), read(&mut near)).await.is_err());

        let reading = tokio::spawn(async move {
            let mut all = 0;
            let mut room = vec![0; 1 << 20];
            while all < sent + 3 {
                all += far.read(&mut room).await.unwrap();
            }
            all
        });
        assert_eq!(poll_fn(|cx| near.poll_write(cx, b"end")).await.unwrap(), 3);
        assert_eq!(reading.await.unwrap(), sent + 3);
    }
}
