//! What name servers may say, and what is made of it.

use super::script::{A, AAAA, Data, NameServer, Says};
use super::*;

async fn lookup(servers: &Servers, name: &str) -> Result<Vec<String>, String> {
    lookup_until(servers, name, Deadline::now() + TIMEOUT).await
}

async fn lookup_until(servers: &Servers, name: &str, end: Deadline) -> Result<Vec<String>, String> {
    let answer = servers.lookup(&DomainName::parse(name).unwrap(), end).await;
    answer.map(|found| found.iter().map(ToString::to_string).collect()).map_err(|error| error.to_string())
}

/// What a lookup gives that finds these.
fn found(addresses: &[&str]) -> Result<Vec<String>, String> {
    addresses.iter().map(|address| Ok((*address).to_owned())).collect()
}

const ADDRESS: Data = Data::A([192, 0, 2, 7]);

#[tokio::test]
async fn d5_d6_d7_both_families_are_asked_once_and_nothing_else_is() {
    let mut server = NameServer::start().await;
    server.say("four.test.", Says::Records(vec![("four.test.", 60, ADDRESS)]));
    server.say(
        "six.test.",
        Says::Records(vec![("six.test.", 60, Data::Aaaa([0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]))]),
    );
    let servers = Servers::build(&server.settings()).unwrap();
    for (name, expected) in [
        ("both.test", &["192.0.2.1", "2001:db8::1"][..]),
        ("four.test", &["192.0.2.7"]),
        ("six.test", &["2001:db8::2"]),
    ] {
        assert_eq!(lookup(&servers, name).await, found(expected));
        // Neither a search domain nor HTTPS and SVCB records.
        assert_eq!(server.asked(), [(format!("{name}."), A), (format!("{name}."), AAAA)]);
        assert_eq!(lookup(&servers, name).await, found(expected));
        // That a family is missing is kept only as long as the server says, which says nothing here.
        let kept = if name == "six.test" { AAAA } else { A };
        assert!(!server.asked().contains(&(format!("{name}."), kept)), "{name} is known");
    }
    assert!(lookup(&servers, "missing.test").await.is_err());
    let asked: Vec<_> = server.asked().into_iter().map(|(name, _)| name).collect();
    assert_eq!(asked, ["missing.test."; 2], "a search domain is tried");
}

#[tokio::test]
async fn failures_are_told_apart() {
    let server = NameServer::start().await;
    server.say("empty.test.", Says::Records(Vec::new()));
    server.say("broken.test.", Says::Code(2));
    server.say("refused.test.", Says::Code(5));
    server.say("silent.test.", Says::Nothing);
    server.say("garbage.test.", Says::Bytes(b"\xff\xff garbage"));
    server.say("loop.test.", Says::Records(vec![("loop.test.", 60, Data::Cname("loop.test."))]));
    server.say("other.test.", Says::Records(vec![("elsewhere.test.", 60, ADDRESS)]));
    let servers = Servers::build(&server.settings()).unwrap();
    for (name, expected) in [
        ("missing.test", "cannot resolve the name"),
        ("empty.test", "cannot resolve the name"),
        ("broken.test", "cannot resolve the name"),
        ("loop.test", "cannot resolve the name"),
        ("other.test", "cannot resolve the name"),
        ("refused.test", "the name server refused to answer"),
        ("silent.test", "the name servers did not answer in time"),
        ("garbage.test", "the name servers did not answer in time"),
    ] {
        assert_eq!(lookup(&servers, name).await, Err(expected.to_owned()), "{name}");
    }
}

#[tokio::test]
async fn d6_aliases_are_followed_to_the_final_address() {
    let server = NameServer::start().await;
    server.say("final.test.", Says::Records(vec![("final.test.", 60, Data::A([10, 0, 0, 1]))]));
    server.say("alias.test.", Says::Records(vec![("alias.test.", 60, Data::Cname("final.test."))]));
    server.say("chain.test.", Says::Records(vec![("chain.test.", 60, Data::Cname("alias.test."))]));
    server.say(
        "whole.test.",
        Says::Records(vec![
            ("whole.test.", 60, Data::Cname("final.test.")),
            ("final.test.", 60, Data::A([10, 0, 0, 1])),
        ]),
    );
    server.say(
        "mixed.test.",
        Says::Records(vec![("mixed.test.", 60, ADDRESS), ("mixed.test.", 60, Data::A([192, 168, 0, 1]))]),
    );
    let servers = Servers::build(&server.settings()).unwrap();
    for name in ["alias.test", "chain.test", "whole.test"] {
        assert_eq!(lookup(&servers, name).await, found(&["10.0.0.1"]), "{name}");
    }
    // All of them reach the check, which refuses the name for the private one (D4).
    assert_eq!(lookup(&servers, "mixed.test").await, found(&["192.0.2.7", "192.168.0.1"]));
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_udp_comes_by_tcp() {
    let server = NameServer::start().await;
    server.say("long.test.", Says::ByTcp(vec![("long.test.", 60, ADDRESS)]));
    let servers = Servers::build(&server.settings()).unwrap();
    assert_eq!(lookup(&servers, "long.test").await, found(&["192.0.2.7"]));
    let servers = Servers::build(&Settings { tcp: true, ..server.settings() }).unwrap();
    assert_eq!(lookup(&servers, "long.test").await, found(&["192.0.2.7"]));
}

#[tokio::test]
async fn d4_d5_an_answer_is_kept_no_longer_than_it_may_be() {
    let mut server = NameServer::start().await;
    server.say("zero.test.", Says::Records(vec![("zero.test.", 0, ADDRESS)]));
    server.say("day.test.", Says::Records(vec![("day.test.", 86_400, ADDRESS)]));
    let servers = Servers::build(&server.settings()).unwrap();
    for _ in 0..2 {
        assert_eq!(lookup(&servers, "zero.test").await, found(&["192.0.2.7"]));
        assert!(server.asked().contains(&("zero.test.".to_owned(), A)), "an answer without time is kept");
    }
    let name = Name::from_ascii("day.test.").unwrap();
    let kept = servers.list[0].resolver.lookup_ip(name).await.unwrap().valid_until();
    assert!(kept <= Instant::now() + MAX_TTL, "an answer is kept for longer than the limit");
}

#[tokio::test]
async fn d5_an_alias_is_kept_no_longer_than_its_shortest_link() {
    let mut server = NameServer::start().await;
    server.say("final.test.", Says::Records(vec![("final.test.", 60, ADDRESS)]));
    server.say("short.test.", Says::Records(vec![("short.test.", 0, Data::Cname("final.test."))]));
    server.say("fleeting.test.", Says::Records(vec![("fleeting.test.", 0, ADDRESS)]));
    server.say("long.test.", Says::Records(vec![("long.test.", 60, Data::Cname("fleeting.test."))]));
    let servers = Servers::build(&server.settings()).unwrap();
    for (name, asked_again) in [("short.test", "short.test."), ("long.test", "fleeting.test.")] {
        assert_eq!(lookup(&servers, name).await, found(&["192.0.2.7"]));
        server.asked();
        assert_eq!(lookup(&servers, name).await, found(&["192.0.2.7"]));
        assert!(server.asked().contains(&(asked_again.to_owned(), A)), "{name}");
    }
}

#[tokio::test]
async fn a_family_that_is_swallowed_on_the_way_holds_nobody_up() {
    let server = NameServer::start().await;
    server.say("four.test.", Says::Only(A, vec![("four.test.", 60, ADDRESS)]));
    let six = Data::Aaaa([0x2001, 0xdb8, 0, 0, 0, 0, 0, 2]);
    server.say("six.test.", Says::Only(AAAA, vec![("six.test.", 60, six)]));
    server.say("none.test.", Says::Only(A, Vec::new()));
    let patient = Settings { wait: Duration::from_secs(3), ..server.settings() };
    let servers = Servers::build(&patient).unwrap();
    assert_eq!(lookup(&servers, "four.test").await, found(&["192.0.2.7"]));
    assert_eq!(lookup(&servers, "six.test").await, found(&["2001:db8::2"]));
    // Half an answer that says nothing is none.
    let servers = Servers::build(&server.settings()).unwrap();
    let late = Err("the name servers did not answer in time".to_owned());
    assert_eq!(lookup(&servers, "none.test").await, late);
}

#[tokio::test]
async fn d4_an_answer_that_changes_is_seen_when_its_time_is_over() {
    let server = NameServer::start().await;
    let servers = Servers::build(&server.settings()).unwrap();
    server.say("turns.test.", Says::Records(vec![("turns.test.", 0, ADDRESS)]));
    assert_eq!(lookup(&servers, "turns.test").await, found(&["192.0.2.7"]));
    server.say("turns.test.", Says::Records(vec![("turns.test.", 0, Data::A([10, 0, 0, 1]))]));
    assert_eq!(lookup(&servers, "turns.test").await, found(&["10.0.0.1"]));
}

#[tokio::test]
async fn the_first_server_is_asked_first_and_its_no_is_final() {
    let (mut first, mut second) = (NameServer::start().await, NameServer::start().await);
    let mut settings = first.settings();
    settings.servers.extend(second.settings().servers);
    let servers = Servers::build(&settings).unwrap();
    // Only the second one knows it.
    second.say("public.test.", Says::Records(vec![("public.test.", 60, ADDRESS)]));
    assert!(lookup(&servers, "public.test").await.is_err());
    assert_eq!(second.asked(), []);
    for says in [Says::Code(2), Says::Code(5), Says::Nothing] {
        first.say("public.test.", says);
        let servers = Servers::build(&settings).unwrap();
        assert_eq!(lookup(&servers, "public.test").await, found(&["192.0.2.7"]));
    }
    // One name that gets no answer says nothing of the server: a sandbox can't choose who answers the others.
    first.say("silent.test.", Says::Nothing);
    second.say("silent.test.", Says::Records(vec![("silent.test.", 60, ADDRESS)]));
    let servers = Servers::build(&settings).unwrap();
    assert_eq!(lookup(&servers, "silent.test").await, found(&["192.0.2.7"]));
    let _ = first.asked();
    assert_eq!(lookup(&servers, "both.test").await, found(&["192.0.2.1", "2001:db8::1"]));
    assert_eq!(first.asked().len(), 2);
    // Who says nothing at all is asked last for a while.
    let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    mute.set_nonblocking(true).unwrap();
    let mut with_mute = settings.clone();
    with_mute.servers[0] = mute.local_addr().unwrap();
    let servers = Servers::build(&with_mute).unwrap();
    assert_eq!(lookup(&servers, "both.test").await, found(&["192.0.2.1", "2001:db8::1"]));
    while mute.recv(&mut [0; 512]).is_ok() {}
    assert_eq!(lookup(&servers, "public.test").await, found(&["192.0.2.7"]));
    assert!(mute.recv(&mut [0; 512]).is_err(), "it was asked again");
    let rotating = Servers::build(&Settings { rotate: true, ..settings }).unwrap();
    for _ in 0..2 {
        assert_eq!(lookup(&rotating, "both.test").await, found(&["192.0.2.1", "2001:db8::1"]));
    }
    assert_eq!((first.asked().len(), second.asked().len() >= 2), (2, true));
}

#[tokio::test]
async fn what_a_server_said_is_told_also_when_another_one_used_up_the_time() {
    let first = NameServer::start().await;
    first.say("refused.test.", Says::Code(5));
    let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut settings = Settings { wait: TIMEOUT, ..first.settings() };
    settings.servers.push(mute.local_addr().unwrap());
    let servers = Servers::build(&settings).unwrap();
    let end = Deadline::now() + Duration::from_millis(500);
    let refused = Err("the name server refused to answer".to_owned());
    assert_eq!(lookup_until(&servers, "refused.test", end).await, refused);
}

#[test]
fn every_server_has_its_turn_behind_silent_ones() {
    for count in 1..=MAX_SERVERS {
        let patient = "nameserver 192.0.2.1\n".repeat(count) + "options timeout:30\n";
        let servers = Servers::build(&Settings::parse(&patient)).unwrap();
        assert_eq!(servers.list.len(), count);
        let whole: Duration = servers.list.iter().map(|server| server.wait + PROBE).sum();
        assert!(whole <= TIMEOUT, "{count}: {whole:?}");
    }
}

#[tokio::test]
async fn many_who_ask_for_one_name_share_the_question() {
    let mut server = NameServer::start().await;
    let servers = std::sync::Arc::new(Servers::build(&server.settings()).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let servers = std::sync::Arc::clone(&servers);
        tasks.spawn(async move { lookup(&servers, "both.test").await });
    }
    for answer in tasks.join_all().await {
        assert_eq!(answer, found(&["192.0.2.1", "2001:db8::1"]));
    }
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn settings_are_read_as_the_system_reads_them() {
    let servers = |text: &str| {
        Settings::parse(text).servers.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>()
    };
    for (text, expected) in [
        ("", &["127.0.0.1"][..]),
        ("nonsense\nnameserver\nnameserver x\nsearch !! ??\n\u{0}", &["127.0.0.1"]),
        ("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example", &["127.0.0.53"]),
        ("# nameserver 10.0.0.1\n;nameserver 10.0.0.2\n nameserver\t10.0.0.3", &["10.0.0.3"]),
        ("nameserver fe80::1%eth0\nnameserver fe80::1\nnameserver 2001:db8::53", &["2001:db8::53"]),
        (
            "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4",
            &["10.0.0.1", "10.0.0.2", "10.0.0.3"],
        ),
    ] {
        assert_eq!(servers(text), expected, "{text:?}");
    }
    let settings =
        Settings::parse("options ndots:5 timeout:99 attempts:9 rotate\noptions use-vc edns0 timeout:x");
    assert_eq!(
        settings,
        Settings {
            wait: Duration::from_secs(30),
            attempts: 5,
            rotate: true,
            extended: true,
            tcp: true,
            ..Settings::parse("")
        }
    );
}
