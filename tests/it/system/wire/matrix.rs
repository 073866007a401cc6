//! Both forms of a request meet the same verdicts, whoever asks and wherever to (H11).

use super::{Cloister, Guardian, Recorder};

/// How a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Connect,
    Absolute,
}

fn head(form: Form, authority: &str, proof: &str) -> String {
    match form {
        Form::Connect => format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{proof}\r\n"),
        Form::Absolute => format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n{proof}\r\n"),
    }
}

/// The status and reason of every case, in one form.
fn verdicts(
    form: Form,
    authority: &str,
    cloister: &Cloister,
    other: &Cloister,
) -> Vec<(String, u16, String)> {
    let (right, wrong, foreign) =
        (cloister.proof(), "Proxy-Authorization: Bearer x\r\n".to_owned(), other.proof());
    let basic = "Proxy-Authorization: Basic Y2xvaXN0ZXI6eA==\r\n".to_owned();
    [
        ("allowed", authority, &right),
        ("denied by a rule", "denied.test:8080", &right),
        ("unlisted", "unlisted.test:8080", &right),
        ("an unlisted address", "93.184.216.34:8080", &right),
        ("loopback", "127.0.0.1:8080", &right),
        ("loopback in IPv6", "[::1]:8080", &right),
        ("loopback in disguise", "[::ffff:127.0.0.1]:8080", &right),
        ("everywhere", "0.0.0.0:8080", &right),
        ("metadata", "169.254.169.254:8080", &right),
        ("metadata by name", "metadata.google.internal:8080", &right),
        ("a pinned name without a rule", "pinned.test:8080", &right),
        ("a wrong token", authority, &wrong),
        ("a wrong password", authority, &basic),
        ("the token of another cloister", authority, &foreign),
        ("a wrong token, unlisted", "unlisted.test:8080", &wrong),
        ("no token", authority, &String::new()),
        ("no token, unlisted", "unlisted.test:8080", &String::new()),
    ]
    .into_iter()
    .map(|(case, authority, proof)| {
        let answer = cloister.ask(head(form, authority, proof));
        (case.to_owned(), answer.status, answer.reason().to_owned())
    })
    .collect()
}

#[test]
fn h11_i4_n8_n12_both_forms_meet_the_same_verdicts() {
    let origin = Recorder::start();
    let authority = origin.authority();
    let settings = |allow: &str| {
        format!(
            "proxy:\n  allow: [{allow}]\n  deny: [\"denied.test\"]\n  hosts:\n    \
             origin.test: [{address}]\n    pinned.test: [{address}]\n",
            address = origin.address.ip()
        )
    };
    let guardian = Guardian::start(&settings(&format!("\"{authority}\"")));
    let (cloister, other) = (guardian.register("demo"), guardian.register("other"));
    let connect = verdicts(Form::Connect, &authority, &cloister, &other);
    let absolute = verdicts(Form::Absolute, &authority, &cloister, &other);
    assert_eq!(connect, absolute);
    let expected: Vec<(&str, u16, &str)> = vec![
        ("allowed", 200, ""),
        ("denied by a rule", 403, "denied_by_rule"),
        ("unlisted", 403, "not_allowed"),
        ("an unlisted address", 403, "not_allowed"),
        ("loopback", 403, "address_forbidden"),
        ("loopback in IPv6", 403, "address_forbidden"),
        ("loopback in disguise", 403, "address_forbidden"),
        ("everywhere", 403, "address_forbidden"),
        ("metadata", 403, "address_forbidden"),
        ("metadata by name", 403, "address_forbidden"),
        ("a pinned name without a rule", 403, "not_allowed"),
        ("a wrong token", 407, "unauthenticated"),
        ("a wrong password", 407, "unauthenticated"),
        ("the token of another cloister", 407, "unauthenticated"),
        ("a wrong token, unlisted", 407, "unauthenticated"),
        ("no token", 407, "unauthenticated"),
        ("no token, unlisted", 407, "unauthenticated"),
    ];
    let connect: Vec<_> =
        connect.iter().map(|(case, status, reason)| (case.as_str(), *status, reason.as_str())).collect();
    assert_eq!(connect, expected);
    // A rule that is gone allows in neither form, not even on a connection that was there before.
    let mut kept = cloister.connect();
    kept.send(head(Form::Absolute, &authority, &cloister.proof()));
    assert_eq!(kept.answer().status, 200);
    guardian.host.configure(&settings("\"elsewhere.test\""));
    assert_eq!(guardian.ask("POST /reload", "").status, 200);
    for form in [Form::Connect, Form::Absolute] {
        let answer = cloister.ask(head(form, &authority, &cloister.proof()));
        assert_eq!((answer.status, answer.reason()), (403, "not_allowed"), "{form:?}");
    }
    kept.send(head(Form::Absolute, &authority, &cloister.proof()));
    assert_eq!(kept.answer().status, 403);
    drop(kept);
    drop(guardian);
    assert_eq!(origin.requests().len(), 2, "the allowed plain request of each half");
}

#[test]
fn n15_a_redirect_is_passed_on_and_its_target_judged_anew() {
    let outside = Recorder::start();
    let location = format!("http://127.0.0.1:{}/", outside.address.port());
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nLocation: {location}\r\nRefresh: 0; url={location}\r\nContent-Length: 0\r\n\r\n"
    );
    let origin = Recorder::answering(redirect.leak());
    let guardian = Guardian::before(&origin);
    let cloister = guardian.register("demo");
    let mut wire = cloister.connect();
    wire.send(cloister.get_head(&origin.authority(), "/"));
    let answer = wire.answer();
    assert_eq!((answer.status, answer.field("location")), (302, Some(location.as_str())));
    // The client follows it on the same connection.
    wire.send(cloister.get_head(&format!("127.0.0.1:{}", outside.address.port()), "/"));
    let answer = wire.answer();
    assert_eq!((answer.status, answer.reason()), (403, "address_forbidden"));
    drop(wire);
    drop(guardian);
    assert_eq!((origin.requests().len(), outside.connections()), (1, 0));
}

#[test]
fn h18_no_request_leads_back_to_the_proxy() {
    let origin = Recorder::start();
    let guardian = Guardian::before(&origin);
    let cloister = guardian.register("demo");
    // The relay's address in a sandbox, by number and by every name that could mean it.
    for authority in
        ["127.0.0.1:3128", "[::1]:3128", "localhost:3128", "cloister-guardian:3128", "0.0.0.0:3128"]
    {
        for form in [Form::Connect, Form::Absolute] {
            let answer = cloister.ask(head(form, authority, &cloister.proof()));
            assert_eq!(answer.status, 403, "{authority} {form:?}");
        }
    }
    // Whoever sends it through the proxy twice has it judged twice: the inner head is the origin's affair.
    let inner = head(Form::Connect, "unlisted.test:443", &cloister.proof());
    let mut tunnel = cloister.connect();
    tunnel.send(cloister.connect_head(&origin.authority()));
    assert_eq!(tunnel.answer().status, 200);
    tunnel.send(inner);
    assert_eq!(tunnel.answer().body, b"ok", "from the origin, which is no proxy");
    drop(tunnel);
    drop(guardian);
    assert_eq!(origin.requests()[0].method, "CONNECT");
}
