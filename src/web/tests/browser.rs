//! A browser reduced to what the page sees of it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Asks with a cookie, and a form's token once it knows one.
#[derive(Clone)]
pub(super) struct Browser {
    address: SocketAddr,
    cookie: Option<String>,
    pub(super) token: String,
}

/// What the page answers.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Response {
    /// The value of a header, by its name in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(own, _)| *own == name).map(|(_, value)| value)
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Browser {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, cookie: None, token: String::new() }
    }

    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn cookie(&self) -> &str {
        self.cookie.as_deref().unwrap()
    }

    pub(super) fn with_cookie(&self, cookie: &str) -> Self {
        Self { cookie: Some(cookie.to_owned()), ..self.clone() }
    }

    pub(super) fn take_cookie(&mut self, answer: &Response) {
        let cookie = answer.header("set-cookie").unwrap();
        self.cookie = Some(cookie.split(';').next().unwrap().to_owned());
    }

    pub(super) fn take_token(&mut self, page: &Response) {
        let (_, rest) = page.body.split_once("name=\"csrf\" value=\"").unwrap();
        rest.split('"').next().unwrap().clone_into(&mut self.token);
    }

    /// Asks like a browser's own page does.
    pub(super) async fn get(&self, path: &str) -> Response {
        self.get_with(path, "").await
    }

    pub(super) async fn get_with(&self, path: &str, headers: &str) -> Response {
        self.raw(&format!("GET {path} HTTP/1.0\r\nHost: {}\r\n{}{headers}\r\n", self.host(), self.cookies()))
            .await
    }

    /// Sends a form of the page.
    pub(super) async fn post(&self, path: &str, fields: &str) -> Response {
        self.post_with(path, fields, "").await
    }

    /// Sends a form and wants JSON.
    pub(super) async fn post_json(&self, path: &str, fields: &str) -> Response {
        self.post_with(path, fields, "Accept: application/json\r\n").await
    }

    async fn post_with(&self, path: &str, fields: &str, headers: &str) -> Response {
        let origin = format!("Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", self.host());
        let body = format!("csrf={}&{fields}", self.token);
        self.send(path, &format!("{origin}{headers}"), "application/x-www-form-urlencoded", &body).await
    }

    pub(super) async fn send(&self, path: &str, headers: &str, media: &str, body: &str) -> Response {
        let (host, cookies, length) = (self.host(), self.cookies(), body.len());
        let head = format!("POST {path} HTTP/1.0\r\nHost: {host}\r\n{cookies}{headers}");
        self.raw(&format!("{head}Content-Type: {media}\r\nContent-Length: {length}\r\n\r\n{body}")).await
    }

    fn cookies(&self) -> String {
        self.cookie.as_ref().map(|cookie| format!("Cookie: other=1; {cookie}\r\n")).unwrap_or_default()
    }

    /// Sends bytes and reads the whole answer.
    pub(super) async fn raw(&self, text: &str) -> Response {
        let mut stream = self.open(text).await;
        let mut answer = Vec::new();
        // A page that refuses a body closes before all of it is read.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Response { status, head: head.to_owned(), body: body.to_owned() }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the client")]
    pub(super) async fn open(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// Opens a stream of events.
    pub(super) async fn events(&self, path: &str) -> Events {
        let head = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n{}\r\n", self.host(), self.cookies());
        Events { stream: self.open(&head).await, bytes: Vec::new(), text: String::new(), is_open: false }
    }
}

/// A stream of events.
pub(super) struct Events {
    stream: TcpStream,
    bytes: Vec<u8>,
    text: String,
    is_open: bool,
}

impl Events {
    /// Reads the next event that is no heartbeat: its name and its data. Nothing when the stream has ended.
    pub(super) async fn next(&mut self) -> Option<(String, serde_json::Value)> {
        loop {
            while !self.text.contains("\n\n") && (self.is_open || !self.text.contains("\r\n\r\n")) {
                if self.stream.read_buf(&mut self.bytes).await.unwrap() == 0 {
                    return None;
                }
                // A character may have arrived in part.
                let whole = match str::from_utf8(&self.bytes) {
                    Ok(text) => text.len(),
                    Err(error) => error.valid_up_to(),
                };
                self.text.push_str(str::from_utf8(&self.bytes[..whole]).unwrap());
                self.bytes.drain(..whole);
            }
            if !self.is_open {
                let (head, rest) = self.text.split_once("\r\n\r\n").unwrap();
                assert!(head.contains(" 200 ") && head.contains("text/event-stream"), "{head}");
                self.text = rest.to_owned();
                self.is_open = true;
                continue;
            }
            let (event, rest) = self.text.split_once("\n\n").unwrap();
            let field =
                |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let (name, data) = (field("event: ").unwrap(), field("data: ").unwrap());
            self.text = rest.to_owned();
            if name != "heartbeat" {
                return Some((name, serde_json::from_str(&data).unwrap()));
            }
        }
    }

    /// Reads up to the next event of a name.
    pub(super) async fn until(&mut self, wanted: &str) -> serde_json::Value {
        loop {
            let (name, data) = self.next().await.expect("the stream goes on");
            if name == wanted {
                return data;
            }
        }
    }
}
