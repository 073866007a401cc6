//! An origin that notes exactly what it is sent, as a server reads it that knows nothing of proxies.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use super::PATIENCE;
use crate::system::origin::address;

/// What an origin answers that has nothing else to say.
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// One request as the origin understood it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case, in their order.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// All values of a field.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let found = self.fields.iter().filter(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str()).collect()
    }
}

#[derive(Debug, Default)]
struct Notes {
    requests: Vec<Request>,
    /// What was no request.
    broken: Vec<String>,
    connections: usize,
    open: usize,
}

/// Answers every request with `200` and `ok`, on connections that stay open, and notes all that it reads.
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    notes: Arc<(Mutex<Notes>, Condvar)>,
}

impl Recorder {
    pub(crate) fn start() -> Self {
        Self::answering(OK)
    }

    /// Gives this answer to everything.
    pub(crate) fn answering(answer: &'static str) -> Self {
        Self::serving(TcpListener::bind((address(), 0)).unwrap(), answer)
    }

    /// Serves wherever this listener is.
    pub(crate) fn serving(listener: TcpListener, answer: &'static str) -> Self {
        let address = listener.local_addr().unwrap();
        let notes = Arc::new((Mutex::new(Notes::default()), Condvar::new()));
        let shared = Arc::clone(&notes);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let notes = Arc::clone(&shared);
                {
                    let mut counts = notes.0.lock().unwrap();
                    counts.connections += 1;
                    counts.open += 1;
                }
                std::thread::spawn(move || {
                    serve(&stream, answer, &notes.0);
                    notes.0.lock().unwrap().open -= 1;
                    notes.1.notify_all();
                });
            }
        });
        Self { address, notes }
    }

    /// The authority by which the guardian knows it.
    pub(crate) fn authority(&self) -> String {
        format!("origin.test:{}", self.address.port())
    }

    pub(crate) fn connections(&self) -> usize {
        self.notes.0.lock().unwrap().connections
    }

    /// How many requests it has noted; who has its answer has been noted.
    pub(crate) fn count(&self) -> usize {
        self.notes.0.lock().unwrap().requests.len()
    }

    /// The requests behind the first `before` ones.
    pub(crate) fn since(&self, before: usize) -> Vec<Request> {
        self.notes.0.lock().unwrap().requests[before..].to_vec()
    }

    /// What it was asked, once all connections have ended: no byte is still on its way.
    #[track_caller]
    pub(crate) fn requests(&self) -> Vec<Request> {
        let noted = self.notes.0.lock().unwrap();
        let (noted, waited) =
            self.notes.1.wait_timeout_while(noted, PATIENCE, |noted| noted.open > 0).unwrap();
        assert!(!waited.timed_out(), "connections to the origin stay open");
        assert_eq!(noted.broken, [""; 0]);
        noted.requests.clone()
    }
}

fn serve(stream: &TcpStream, answer: &str, notes: &Mutex<Notes>) {
    let mut reader = BufReader::new(stream);
    loop {
        let request = match read_request(&mut reader) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(what) => return notes.lock().unwrap().broken.push(what),
        };
        let whole = answer.len();
        let end =
            if request.method == "HEAD" { answer.find("\r\n\r\n").map_or(whole, |at| at + 4) } else { whole };
        notes.lock().unwrap().requests.push(request);
        // Who asked may have gone.
        if { stream }.write_all(&answer.as_bytes()[..end]).is_err() {
            return;
        }
    }
}

/// Reads one request; `None` at the end of the connection, an error for all that is in doubt.
fn read_request(reader: &mut impl BufRead) -> Result<Option<Request>, String> {
    let first = line(reader)?;
    let Some(first) = first else { return Ok(None) };
    let parts: Vec<&str> = first.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else { return Err(first) };
    let mut fields = Vec::new();
    loop {
        let line = line(reader)?.ok_or_else(|| format!("the head of {first} has no end"))?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").ok_or_else(|| line.clone())?;
        if name.is_empty() || name.contains([' ', '\t']) || value.starts_with(' ') {
            return Err(line);
        }
        fields.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut request = Request { method: method.into(), target: target.into(), fields, body: Vec::new() };
    request.body = match (&request.values("content-length")[..], &request.values("transfer-encoding")[..]) {
        ([], []) => Vec::new(),
        ([length], []) => {
            let mut body = vec![0; length.parse().map_err(|_| (*length).to_owned())?];
            // A request that was broken off is none.
            if reader.read_exact(&mut body).is_err() {
                return Ok(None);
            }
            body
        }
        ([], ["chunked"]) => match chunks(reader)? {
            Some(body) => body,
            None => return Ok(None),
        },
        (lengths, codings) => return Err(format!("framed by {lengths:?} and {codings:?}")),
    };
    Ok(Some(request))
}

/// A body in chunks; `None` when it was broken off.
fn chunks(reader: &mut impl BufRead) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        let Some(size) = line(reader)? else { return Ok(None) };
        let size = usize::from_str_radix(&size, 16).map_err(|_| size)?;
        let mut piece = vec![0; size];
        if reader.read_exact(&mut piece).is_err() {
            return Ok(None);
        }
        body.extend(piece);
        match line(reader)? {
            Some(end) if end.is_empty() => {}
            Some(end) => return Err(end),
            None => return Ok(None),
        }
        if size == 0 {
            return Ok(Some(body));
        }
    }
}

/// A line without its CRLF; `None` at the end.
fn line(reader: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    // A connection that is broken off has ended.
    if reader.take(1 << 20).read_until(b'\n', &mut line).is_err() || line.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    match text.strip_suffix("\r\n") {
        Some(line) if !line.contains(['\r', '\n', '\0']) => Ok(Some(line.to_owned())),
        Some(_) | None => Err(text),
    }
}
