//! Attacks on the way out from inside of a real sandbox that a socket alone does not show.

use std::io::Write as _;

use crate::harness::Host;
use crate::system::origin::{Plain, read_head};

/// A relay at 127.0.0.1:8888 that passes on whatever it hears.
const RELAY: &str = r"
use IO::Socket::INET; use IO::Select;
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1:8888', Listen => 5, ReuseAddr => 1) or die;
open(my $ready, '>', '/tmp/relay') or die; close $ready;
while (my $client = $listener->accept) {
  my $proxy = IO::Socket::INET->new('127.0.0.1:3128') or die;
  my $both = IO::Select->new($client, $proxy);
  PASS: while (my @ready = $both->can_read) {
    for my $from (@ready) {
      sysread($from, my $bytes, 65536) or last PASS;
      syswrite($from == $client ? $proxy : $client, $bytes);
    }
  }
  close $client; close $proxy;
}
";

#[test]
fn n17_a_relay_in_the_sandbox_gains_nothing() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.write(&host.repository().join("relay.pl"), RELAY);
    let script = "perl relay.pl & until test -e /tmp/relay; do :; done; \
        auth=cloister:$CLOISTER_TOKEN; \
        for url in https://unlisted.example/ http://unlisted.example/ http://169.254.169.254/; do \
          curl -s -m 10 -o /dev/null -w '%{http_connect} %{http_code}\\n' -x http://$auth@127.0.0.1:8888 $url; \
        done; \
        curl -s -m 10 -o /dev/null -w '%{http_connect}\\n' --preproxy http://$auth@127.0.0.1:3128 \
          -x http://$auth@127.0.0.1:3128 https://unlisted.example/; \
        kill %1 2>/dev/null || kill $!";
    let done = host.inside(script);
    let mut lines = done.stdout.lines();
    assert_eq!(lines.next(), Some("403 000"), "{done:?}");
    assert_eq!(lines.next(), Some("000 403"), "{done:?}");
    assert_eq!(lines.next(), Some("000 403"), "{done:?}");
    // Through the proxy to the proxy: its address is none that a sandbox may reach.
    assert_ne!(lines.next(), Some("200"), "{done:?}");
}

#[test]
fn d1_d9_nothing_answers_names_inside_and_so_nothing_is_fallen_through_to() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let script = "getent hosts example.com; echo $?; getent ahosts unlisted.invalid; echo $?; \
        perl -MIO::Socket::INET -e '\
          for my $server (qw(127.0.0.1 127.0.0.11 127.0.0.53 8.8.8.8 169.254.169.254)) { \
            my $tcp = IO::Socket::INET->new(PeerAddr => $server, PeerPort => 53, Timeout => 3); \
            my $udp = IO::Socket::INET->new(PeerAddr => $server, PeerPort => 53, Proto => qq(udp)); \
            my $sent = $udp && $udp->send(qq(\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\4test\\0\\0\\1\\0\\1)); \
            my $answer; \
            if ($sent) { local $SIG{ALRM} = sub { die }; eval { alarm 2; $udp->recv($answer, 512) }; alarm 0 } \
            print $tcp ? qq(open) : qq(closed), length($answer // qq()) ? qq( answers) : qq( silent), qq(\\n) }'";
    let done = host.inside(script);
    assert_eq!(done.stdout, format!("2\n2\n{}", "closed silent\n".repeat(5)), "{done:?}");
}

#[test]
fn t9_socks_is_not_spoken_at_the_relay() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let script = "for kind in socks4 socks4a socks5 socks5-hostname; do \
          curl -s -m 10 -o /dev/null --$kind 127.0.0.1:3128 http://unlisted.example/; echo $?; done; \
        perl -MIO::Socket::INET -e '\
          for my $greeting (qq(\\5\\1\\0), qq(\\5\\1\\0\\5\\3\\0\\1\\0\\0\\0\\0\\0\\0), qq(\\4\\2\\1\\xbb\\x7f\\0\\0\\1\\0)) { \
            my $proxy = IO::Socket::INET->new(q(127.0.0.1:3128)); print $proxy $greeting; \
            local $/; print substr(<$proxy>, 0, 12), qq(\\n) }'";
    let done = host.inside(script);
    let lines: Vec<_> = done.stdout.lines().collect();
    assert_eq!(lines[4..], ["HTTP/1.1 400"; 3], "{done:?}");
    // What curl makes of an answer that is no SOCKS; 28 would be its patience.
    assert!(lines[..4].iter().all(|code| ["5", "7", "97"].contains(code)), "{done:?}");
}

#[test]
fn n9_t11_two_ports_of_the_sandboxs_own_network_answer() {
    let Some(host) = Host::with_bubblewrap() else { return };
    // A socket meets itself where its own port is the one that it asks for.
    let script = "perl -MSocket -e '\
          for my $address (qw(127.0.0.1 127.0.0.2)) { for my $port (1 .. 65535) { \
            socket(my $socket, PF_INET, SOCK_STREAM, 0) or die; \
            connect($socket, sockaddr_in($port, inet_aton($address))) or next; \
            print qq($address $port\\n) if getsockname($socket) ne getpeername($socket) } }'; \
        grep -c . /proc/net/route; cut -d' ' -f1 /proc/net/if_inet6 2>/dev/null | grep -vc ^00000000000000000000000000000001";
    let done = host.inside(script);
    // One line is the head of the table of routes.
    assert_eq!(done.stdout, "127.0.0.1 3128\n127.0.0.1 9998\n1\n0\n", "{done:?}");
}

/// More than all sockets on the way hold.
const WHOLE: usize = 24 << 20;

#[test]
fn an_answer_that_is_cut_or_slowly_read_shows_as_what_it_is_through_the_relay() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let origin = Plain::serve(|mut stream| {
        let request = read_head(&stream);
        let sent = if request.contains("/cut") { WHOLE / 2 } else { WHOLE };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {WHOLE}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; sent])).unwrap();
    });
    let (address, port) = (origin.address.ip(), origin.address.port());
    host.configure(&format!("proxy: {{allow: ['web.test:{port}'], hosts: {{web.test: [{address}]}}}}\n"));
    // 18 is curl's code for a part of a file. Who stops reading for longer than anybody waits misses nothing.
    let script = format!(
        "for how in '' -p; do \
           curl -s $how -o /dev/null http://web.test:{port}/cut; echo $?; \
           curl -s $how http://web.test:{port}/ | {{ sleep 2; wc -c; }}; \
         done"
    );
    let done = host.inside(&script);
    assert_eq!(done.stdout, format!("18\n{WHOLE}\n").repeat(2), "{done:?}");
}
