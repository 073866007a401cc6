//! What the host and a sandbox's first process say to each other about one session: frames of a kind, a length
//! and as many bytes. The host reads nothing else from a sandbox, and a frame of either side has a largest size.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest piece of input or output in one frame, in bytes.
pub const MAX_DATA_BYTES: usize = 32 * 1024;
/// The largest frame: a command line and its environment, in bytes.
const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// How much input the host may send ahead of what the command has taken, in bytes.
pub const INPUT_WINDOW_BYTES: usize = 256 * 1024;

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables beyond those that every session gets.
    pub environment: BTreeMap<String, String>,
    /// Where it starts.
    pub directory: String,
    /// The terminal that it gets; pipes without one.
    pub terminal: Option<TerminalSize>,
}

/// What the host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromHost {
    /// Start this command.
    Start(Start),
    /// Bytes for the command's input.
    Input(Vec<u8>),
    /// There is no more input.
    InputEnd,
    /// The terminal's new size.
    Resize(TerminalSize),
    /// A signal for the command.
    Signal(i32),
    /// Say whether sessions can be started.
    Probe,
    /// End the sandbox.
    Stop,
}

/// What the first process says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromSandbox {
    /// The command was started, or could be.
    Started,
    /// The command could not be started.
    Failed(String),
    /// Bytes of the command's output.
    Output(Vec<u8>),
    /// Bytes of the command's error output.
    ErrorOutput(Vec<u8>),
    /// So many bytes of input were taken.
    Taken(u32),
    /// The command ended with this code.
    Exit(u8),
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> io::Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 5];
    match stream.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > limit {
        return Err(invalid("a frame is larger than allowed"));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok(Some((head[0], payload)))
}

async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), kind: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(invalid)?;
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind);
    frame.extend(length.to_be_bytes());
    frame.extend(payload);
    stream.write_all(&frame).await
}

fn number<const N: usize>(payload: &[u8]) -> io::Result<[u8; N]> {
    payload.try_into().map_err(|_| invalid("a frame has the wrong length"))
}

impl FromHost {
    /// Reads one message; `None` at the end of the stream.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let Some((kind, payload)) = read_frame(stream, MAX_FRAME_BYTES).await? else {
            return Ok(None);
        };
        let message = match kind {
            b'S' => Self::Start(serde_json::from_slice(&payload).map_err(invalid)?),
            b'i' => Self::Input(payload),
            b'e' => Self::InputEnd,
            b'r' => Self::Resize(serde_json::from_slice(&payload).map_err(invalid)?),
            b's' => Self::Signal(i32::from_be_bytes(number(&payload)?)),
            b'?' => Self::Probe,
            b'Q' => Self::Stop,
            _ => return Err(invalid("a frame has an unknown kind")),
        };
        Ok(Some(message))
    }

    /// Writes the message.
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let json = |value: serde_json::Result<Vec<u8>>| value.map_err(invalid);
        let (kind, payload) = match self {
            Self::Start(start) => (b'S', json(serde_json::to_vec(start))?),
            Self::Input(bytes) => return write_frame(stream, b'i', bytes).await,
            Self::InputEnd => (b'e', Vec::new()),
            Self::Resize(size) => (b'r', json(serde_json::to_vec(size))?),
            Self::Signal(signal) => (b's', signal.to_be_bytes().to_vec()),
            Self::Probe => (b'?', Vec::new()),
            Self::Stop => (b'Q', Vec::new()),
        };
        write_frame(stream, kind, &payload).await
    }
}

impl FromSandbox {
    /// Reads one message; `None` at the end of the stream. What does not follow the format is an error.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let Some((kind, payload)) = read_frame(stream, MAX_DATA_BYTES).await? else {
            return Ok(None);
        };
        let message = match kind {
            b'+' => Self::Started,
            b'-' => Self::Failed(String::from_utf8_lossy(&payload).into_owned()),
            b'o' => Self::Output(payload),
            b'E' => Self::ErrorOutput(payload),
            b't' => Self::Taken(u32::from_be_bytes(number(&payload)?)),
            b'x' => Self::Exit(u8::from_be_bytes(number(&payload)?)),
            _ => return Err(invalid("a frame has an unknown kind")),
        };
        Ok(Some(message))
    }

    /// Writes the message.
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self {
            Self::Started => write_frame(stream, b'+', &[]).await,
            Self::Failed(reason) => write_frame(stream, b'-', reason.as_bytes()).await,
            Self::Output(bytes) => write_frame(stream, b'o', bytes).await,
            Self::ErrorOutput(bytes) => write_frame(stream, b'E', bytes).await,
            Self::Taken(count) => write_frame(stream, b't', &count.to_be_bytes()).await,
            Self::Exit(code) => write_frame(stream, b'x', &[*code]).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn both_ways(messages: &[FromHost]) {
        let mut bytes = Vec::new();
        for message in messages {
            message.write(&mut bytes).await.unwrap();
        }
        let mut stream = bytes.as_slice();
        for message in messages {
            assert_eq!(FromHost::read(&mut stream).await.unwrap().as_ref(), Some(message));
        }
        assert_eq!(FromHost::read(&mut stream).await.unwrap(), None);
    }

    #[tokio::test]
    async fn every_message_of_the_host_arrives() {
        let start = Start {
            argv: vec!["a".into(), String::new(), "ü\n".into()],
            environment: [("TERM".to_owned(), "xterm".to_owned())].into(),
            directory: "/work".into(),
            terminal: Some(TerminalSize { rows: 1, columns: 2 }),
        };
        both_ways(&[
            FromHost::Start(start),
            FromHost::Input(vec![0, 255]),
            FromHost::InputEnd,
            FromHost::Resize(TerminalSize { rows: 3, columns: 4 }),
            FromHost::Signal(15),
            FromHost::Probe,
            FromHost::Stop,
        ])
        .await;
    }

    #[tokio::test]
    async fn every_message_of_the_sandbox_arrives() {
        let messages = [
            FromSandbox::Started,
            FromSandbox::Failed("why".into()),
            FromSandbox::Output(vec![7; MAX_DATA_BYTES]),
            FromSandbox::ErrorOutput(vec![]),
            FromSandbox::Taken(70_000),
            FromSandbox::Exit(143),
        ];
        let mut bytes = Vec::new();
        for message in &messages {
            message.write(&mut bytes).await.unwrap();
        }
        let mut stream = bytes.as_slice();
        for message in messages {
            assert_eq!(FromSandbox::read(&mut stream).await.unwrap(), Some(message));
        }
    }

    #[track_caller]
    fn refused(bytes: &[u8]) {
        let mut stream = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(runtime.block_on(FromSandbox::read(&mut stream)).is_err(), "{bytes:?}");
    }

    #[test]
    fn a_hostile_first_process_is_refused() {
        refused(b"o\xff\xff\xff\xff");
        refused(b"o\x00\x01\x00\x00");
        refused(b"?\x00\x00\x00\x00");
        refused(b"x\x00\x00\x00\x00");
        refused(b"t\x00\x00\x00\x01a");
        refused(b"o\x00\x00\x00\x05abc");
    }
}
