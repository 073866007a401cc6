//! The driver's own commands, and that the harness works.

use super::*;
use crate::system::origin::{Plain, read_head};

/// Posts JSON to the driver; gives the value of its answer.
#[expect(clippy::disallowed_methods, reason = "the driver is the test's own")]
pub(super) fn post(port: u16, path: &str, body: &Value) -> Value {
    let body = body.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let (mut reader, mut length, mut head) = (BufReader::new(stream), 0, String::new());
    while !head.ends_with("\r\n\r\n") {
        let begin = head.len();
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
        let (name, value) = head[begin..].split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
    }
    // The driver keeps the connection.
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}{}", String::from_utf8_lossy(&body));
    serde_json::from_slice::<Value>(&body).unwrap()["value"].clone()
}

fn page(script: &str) -> Plain {
    let page = format!(
        "<!doctype html><title>first</title><link rel=icon href=data:,><p id=text>a &amp; b</p>\
         <button disabled>go</button><script>{script}</script>"
    );
    Plain::serve(move |mut stream| {
        read_head(&stream);
        let length = page.len();
        // A connection that the browser opens ahead of its need carries nothing.
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\
             Content-Security-Policy: img-src data:; script-src 'unsafe-inline'\r\nConnection: close\r\n\r\n{page}"
        );
    })
}

const SCRIPT: &str = "const b = document.querySelector('button'); setTimeout(() => b.disabled = false, 50); \
                      b.onclick = () => { document.title = 'second'; b.id = 'clicked'; };";

#[test]
fn a_page_is_opened_read_and_clicked_in_two_tabs() {
    let Some(browser) = Browser::start() else { return };
    let origin = page(SCRIPT);
    let url = format!("http://{}/", origin.address);
    browser.open(&url);
    assert_eq!(
        (browser.title(), browser.text("#text"), browser.address()),
        ("first".into(), "a & b".into(), url.clone())
    );
    browser.click("button");
    browser.find("#clicked");
    browser.shows("button", "go");
    assert_eq!(browser.title(), "second");
    let first = browser.new_tab();
    browser.open(&url);
    assert_eq!((browser.title(), browser.count("#clicked")), ("first".into(), 0));
    let second = browser.switch(first);
    assert_eq!(browser.title(), "second");
    browser.switch(second);
    browser.script("document.querySelector('button').remove()");
    browser.gone("button");
    browser.holds("return document.querySelectorAll('p').length === 1");
    browser.quiet();
    browser.reload();
    browser.script("document.body.append(Object.assign(new Image(), {src: '/x.png'}))");
    let complaint = browser.until("the breach of the policy", || browser.complaints().pop());
    assert!(complaint.contains("Content Security Policy"), "{complaint}");
}

#[test]
fn a_browser_without_script_runs_none_and_names_lead_where_the_test_says() {
    let origin = page("document.title = 'run'");
    let (address, port) = (origin.address.ip(), origin.address.port());
    let names = Some(format!("MAP a.test {address}"));
    let Some(browser) = Browser::with(&Setup { is_without_script: true, names }) else { return };
    browser.open(&format!("http://a.test:{port}/"));
    assert_eq!((browser.title(), browser.text("#text")), ("first".into(), "a & b".into()));
}
