//! A command's end of the socket.

use std::io::ErrorKind;
use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{Answer, Request, socket_path};
use crate::error::{Error, Result};

#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// `None` where no agent runs on this data directory: no socket, or one that nobody serves.
    pub async fn connect(data_dir: &Path) -> Result<Option<Self>> {
        let path = socket_path(data_dir);
        match UnixStream::connect(&path).await {
            Ok(stream) => Ok(Some(Client { stream: BufReader::new(stream) })),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => Err(Error::stop(
                format!("cannot reach the agent on {}: {error}", path.display()),
                "run the command as the agent's user or as root",
            )
            .because(error)),
        }
    }

    pub async fn ask(&mut self, request: &Request) -> Result<Answer> {
        let gone = |error: std::io::Error| Error::retry("the agent went away before it answered").because(error);
        let mut line = serde_json::to_string(request).expect("requests are plain data");
        line.push('\n');
        self.stream.write_all(line.as_bytes()).await.map_err(gone)?;
        line.clear();
        if self.stream.read_line(&mut line).await.map_err(gone)? == 0 {
            return Err(Error::retry("the agent went away before it answered"));
        }
        match serde_json::from_str(&line) {
            Ok(Answer::Error { message, hint }) => Err(Error::stop(message, hint)),
            Ok(answer) => Ok(answer),
            Err(error) => Err(Error::stop(
                "the agent's answer is not understood",
                "command and agent must be of the same version: restart the agent after an upgrade",
            )
            .because(error)),
        }
    }
}
