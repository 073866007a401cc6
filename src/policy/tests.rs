//! Verdicts of whole policies, as tables that read like the specification.

use std::fmt::Debug;

use super::*;
use crate::name::CloisterName;

mod addresses;

/// A policy under test, written in text.
#[derive(Default)]
struct Case {
    input: PolicyInput,
}

impl Case {
    fn new() -> Self {
        Self::default()
    }

    fn asking(mut self) -> Self {
        self.input.unlisted = Unlisted::Ask;
        self
    }

    fn rule(mut self, rule: Rule) -> Self {
        self.input.rules.push(rule);
        self
    }

    fn allow(self, patterns: &[&str]) -> Self {
        patterns.iter().fold(self, |case, pattern| case.rule(allow(pattern)))
    }

    fn deny(self, patterns: &[&str]) -> Self {
        patterns.iter().fold(self, |case, pattern| case.rule(deny(pattern)))
    }

    fn pin(mut self, name: &str, addresses: &[&str]) -> Self {
        self.input.pins.insert(parsed(DomainName::parse(name)), ips(addresses));
        self
    }

    fn private(mut self, patterns: &[&str]) -> Self {
        self.input.private.extend(patterns.iter().map(|pattern| parsed(DomainPattern::parse(pattern))));
        self
    }

    fn listening(mut self, sockets: &[&str]) -> Self {
        self.input.listening.extend(sockets.iter().map(|socket| socket.parse::<SocketAddr>().unwrap()));
        self
    }

    fn build(&self) -> Policy {
        Policy::new(self.input.clone())
    }

    #[track_caller]
    fn connect(&self, authority: &str, verdict: &str) -> &Self {
        assert_eq!(verdict_of(&self.build(), authority, Via::Connect, None), verdict, "CONNECT {authority}");
        self
    }

    #[track_caller]
    fn plain(&self, authority: &str, verdict: &str) -> &Self {
        assert_eq!(verdict_of(&self.build(), authority, Via::Plain, None), verdict, "plain {authority}");
        self
    }

    /// Asks by CONNECT and presents what the DNS answered.
    #[track_caller]
    fn resolved(&self, authority: &str, answers: &[&str], verdict: &str) -> &Self {
        let shown = match permit(&self.build(), authority, answers) {
            Ok(permit) => format!("{:?}", permit.addresses()),
            Err(denial) => format!("{} {}", denial.reason().code(), denial.detail().unwrap_or("-")),
        };
        assert_eq!(shown, verdict, "{authority} {answers:?}");
        self
    }
}

#[track_caller]
fn parsed<T, E: Debug>(result: Result<T, E>) -> T {
    result.unwrap()
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

fn allow(pattern: &str) -> Rule {
    Rule::allow(parsed(Pattern::parse(pattern)), Origin::new(OriginKind::Global))
}

fn deny(pattern: &str) -> Rule {
    Rule::deny(parsed(Pattern::parse_for(Effect::Deny, pattern)), Origin::new(OriginKind::Global))
}

fn evaluate(policy: &Policy, authority: &str, via: Via, grant: Option<&Arc<Rule>>) -> Decision {
    let cloister = parsed(CloisterName::parse("app"));
    let authority = parsed(Authority::parse(authority));
    policy.evaluate(&Request { cloister: &cloister, authority: &authority, via, grant })
}

/// Shows a verdict as `code [pattern]`.
fn verdict_of(policy: &Policy, authority: &str, via: Via, grant: Option<&Arc<Rule>>) -> String {
    let decision = evaluate(policy, authority, via, grant);
    let code = match &decision {
        Decision::Allow(_) => "allow",
        Decision::Deny(denial) => denial.reason().code(),
        Decision::Ask(_) => "ask",
    };
    match decision.rule() {
        Some(rule) => format!("{code} {rule}"),
        None => code.to_owned(),
    }
}

#[track_caller]
fn permit(policy: &Policy, authority: &str, answers: &[&str]) -> Result<Permit, Denial> {
    match evaluate(policy, authority, Via::Connect, None) {
        Decision::Allow(allowed) => allowed.permit(&ips(answers), |_| false),
        other => panic!("not allowed: {other:?}"),
    }
}

#[test]
fn s2_an_empty_list_allows_nothing() {
    let empty = Case::new();
    for authority in ["example.com:443", "localhost:443", "1.1.1.1:443", "[2606:4700::1111]:443"] {
        let verdict = if authority.starts_with("127.") { "address_forbidden" } else { "not_allowed" };
        empty.connect(authority, verdict).plain(&authority.replace(":443", ":80"), verdict);
    }
    Case::new().asking().connect("example.com:443", "ask").connect("1.1.1.1:443", "not_allowed");
}

#[test]
fn n1_every_spelling_gives_the_same_verdict() {
    let case = Case::new().allow(&["Bücher.Example."]);
    for text in [
        "bücher.example:443",
        "BÜCHER.EXAMPLE:443",
        "xn--bcher-kva.example.:443",
        "XN--bcher-KVA.example:443",
    ] {
        case.connect(text, "allow xn--bcher-kva.example");
    }
}

#[test]
fn n5_rules_match_label_by_label() {
    Case::new()
        .allow(&["github.com", "*.example.com"])
        .connect("github.com:443", "allow github.com")
        .connect("api.github.com:443", "not_allowed")
        .connect("evilgithub.com:443", "not_allowed")
        .connect("github.com.evil.net:443", "not_allowed")
        .connect("a.example.com:443", "allow *.example.com")
        .connect("a.b.example.com:443", "allow *.example.com")
        .connect("example.com:443", "not_allowed")
        .connect("evil-example.com:443", "not_allowed");
}

#[test]
fn the_most_specific_rule_is_shown() {
    Case::new()
        .allow(&["*.example.com", "*.b.example.com", "a.b.example.com", "a.b.example.com:443"])
        .connect("a.b.example.com:443", "allow a.b.example.com:443")
        .plain("a.b.example.com:80", "allow a.b.example.com")
        .connect("x.b.example.com:443", "allow *.b.example.com")
        .connect("x.example.com:443", "allow *.example.com");
}

#[test]
fn n9_a_rule_without_a_port_means_443_and_80() {
    let case = Case::new().allow(&["example.com"]);
    case.connect("example.com:443", "allow example.com").plain("example.com:80", "allow example.com");
    for port in [1, 22, 25, 79, 81, 442, 444, 6379, 8080, 8443, 65535] {
        let authority = format!("example.com:{port}");
        case.connect(&authority, "not_allowed").plain(&authority, "not_allowed");
    }
}

#[test]
fn n9_connect_never_goes_to_80_nor_plain_to_443() {
    let case = Case::new().allow(&["example.com", "example.com:80", "example.com:443", "10.0.0.1:80"]);
    case.connect("example.com:80", "not_allowed")
        .connect("10.0.0.1:80", "not_allowed")
        .plain("example.com:443", "not_allowed")
        .plain("example.com:80", "allow example.com:80")
        .connect("example.com:443", "allow example.com:443");
    Case::new().asking().connect("example.com:80", "not_allowed").plain("example.com:443", "not_allowed");
    let Decision::Deny(denial) = evaluate(&case.build(), "example.com:80", Via::Connect, None) else {
        panic!()
    };
    assert_eq!(denial.detail(), Some("CONNECT never goes to port 80"));
}

#[test]
fn n9_a_rule_with_a_port_means_that_port_alone() {
    Case::new()
        .allow(&["db.example.com:5432", "*.apps.example.com:8080"])
        .connect("db.example.com:5432", "allow db.example.com:5432")
        .plain("db.example.com:5432", "allow db.example.com:5432")
        .connect("db.example.com:443", "not_allowed")
        .plain("db.example.com:80", "not_allowed")
        .plain("a.apps.example.com:8080", "allow *.apps.example.com:8080")
        .connect("a.apps.example.com:443", "not_allowed");
}

#[test]
fn deny_beats_allow_at_every_level() {
    Case::new()
        .allow(&[
            "api.example.com",
            "*.example.com",
            "*.deep.example.com",
            "example.org:8443",
            "10.0.0.1:443",
        ])
        .deny(&["*.example.com", "x.deep.example.com", "example.org", "10.0.0.1"])
        .connect("api.example.com:443", "denied_by_rule *.example.com")
        .plain("api.example.com:80", "denied_by_rule *.example.com")
        .connect("x.deep.example.com:443", "denied_by_rule x.deep.example.com")
        .connect("example.org:8443", "denied_by_rule example.org")
        .connect("10.0.0.1:443", "denied_by_rule 10.0.0.1");
}

#[test]
fn a_deny_rule_without_a_port_denies_every_port_and_one_with_a_port_that_one() {
    let case = Case::new().asking().deny(&["a.example.com", "b.example.com:443"]);
    for port in [1, 22, 80, 443, 8443] {
        let authority = format!("a.example.com:{port}");
        case.connect(&authority, "denied_by_rule a.example.com")
            .plain(&authority, "denied_by_rule a.example.com");
    }
    case.connect("b.example.com:443", "denied_by_rule b.example.com:443").plain("b.example.com:80", "ask");
}

#[test]
fn s4_a_broad_deny_rule_beats_every_allow_rule() {
    Case::new()
        .asking()
        .allow(&["example.com", "*.example.com", "example.org"])
        .deny(&["*.com", "*.github.io"])
        .connect("example.com:443", "denied_by_rule *.com")
        .connect("a.b.example.com:443", "denied_by_rule *.com")
        .connect("you.github.io:443", "denied_by_rule *.github.io")
        .connect("example.org:443", "allow example.org")
        .connect("github.io:443", "ask");
}

#[test]
fn a_denial_by_an_answer_says_so() {
    let rule = |kind| Rule::deny(parsed(Pattern::parse("example.com")), Origin::new(kind));
    for (kind, reason) in [
        (OriginKind::Builtin, Reason::DeniedByRule),
        (OriginKind::Global, Reason::DeniedByRule),
        (OriginKind::Project, Reason::DeniedByRule),
        (OriginKind::CloisterNix, Reason::DeniedByRule),
        (OriginKind::Decision, Reason::DeniedByUser),
        (OriginKind::Session, Reason::DeniedByUser),
    ] {
        let policy = Case::new().rule(rule(kind)).build();
        let Decision::Deny(denial) = evaluate(&policy, "example.com:443", Via::Connect, None) else {
            panic!()
        };
        assert_eq!(denial, Denial::new(reason).with_rule(&Arc::new(rule(kind))));
    }
}

#[test]
fn a_verdict_carries_the_rule_with_its_origin() {
    let origin = Origin::new(OriginKind::Project).at("projects/app.yaml:12");
    let policy = Case::new().rule(Rule::allow(parsed(Pattern::parse("example.com")), origin.clone())).build();
    let decision = evaluate(&policy, "example.com:443", Via::Connect, None);
    let rule = decision.rule().unwrap();
    assert_eq!(rule.origin(), &origin);
    assert_eq!(rule.origin().to_string(), "project (projects/app.yaml:12)");
    assert_eq!((rule.origin().name(), rule.effect()), ("project", Effect::Allow));
    assert_eq!(Origin::new(OriginKind::CloisterNix).to_string(), "cloister_nix");
}

#[test]
fn an_answer_becomes_a_rule_and_the_same_request_is_allowed() {
    let policy = Case::new().asking().build();
    let Decision::Ask(question) = evaluate(&policy, "example.com:8443", Via::Connect, None) else { panic!() };
    let pattern = Pattern::exactly(question.request().authority);
    assert_eq!(pattern.to_string(), "example.com:8443");
    let rule = Rule::allow(pattern, Origin::new(OriginKind::Session));
    let answered = Case::new().asking().rule(rule).build();
    let decision = answered.evaluate(&question.request());
    assert_eq!(decision.rule().unwrap().to_string(), "example.com:8443");
    assert!(matches!(decision, Decision::Allow(_)));
    assert_eq!(answered.rules().map(Rule::to_string).collect::<Vec<_>>(), ["example.com:8443"]);
}

#[test]
fn a8_a_grant_holds_for_what_it_names_and_opens_nothing_that_is_denied() {
    let policy = Case::new().asking().deny(&["bad.example.com"]).build();
    let granted = |rule: Rule, authority, via| verdict_of(&policy, authority, via, Some(&Arc::new(rule)));
    let connect = |rule, authority| granted(rule, authority, Via::Connect);
    assert_eq!(connect(allow("example.com:443"), "example.com:443"), "allow example.com:443");
    assert_eq!(connect(deny("example.com:443"), "example.com:443"), "denied_by_rule example.com:443");
    // N9: the port is part of it.
    assert_eq!(connect(allow("example.com:443"), "example.com:8443"), "ask");
    assert_eq!(connect(allow("example.com:443"), "www.example.com:443"), "ask");
    assert_eq!(connect(deny("example.com:443"), "example.com:8443"), "ask");
    assert_eq!(
        connect(allow("bad.example.com:443"), "bad.example.com:443"),
        "denied_by_rule bad.example.com"
    );
    assert_eq!(connect(allow("example.com:80"), "example.com:80"), "not_allowed");
    assert_eq!(
        connect(allow("metadata.google.internal:443"), "metadata.google.internal:443"),
        "address_forbidden"
    );
    assert_eq!(granted(allow("example.com:443"), "example.com:443", Via::Plain), "not_allowed");
}

#[test]
fn k12_n7_nobody_is_asked_about_what_no_answer_may_open() {
    Case::new()
        .asking()
        .deny(&["denied.example.com"])
        .pin("link.example.com", &["169.254.1.1"])
        .pin("both.example.com", &["10.0.0.1", "224.0.0.1"])
        .pin("db.example.com", &["10.0.0.1"])
        .connect("denied.example.com:443", "denied_by_rule denied.example.com")
        .connect("metadata.google.internal:443", "address_forbidden")
        .connect("link.example.com:443", "address_forbidden")
        .connect("both.example.com:443", "address_forbidden")
        .connect("db.example.com:443", "ask")
        .connect("203.0.114.1:443", "not_allowed")
        .connect("10.0.0.1:443", "not_allowed")
        .connect("127.0.0.1:443", "address_forbidden")
        .connect("[2606:4700::1]:443", "not_allowed")
        .connect("localhost:443", "not_allowed")
        .connect("example.com:80", "not_allowed")
        .plain("example.com:443", "not_allowed");
}

#[test]
fn n5_n6_a_wildcard_is_offered_beside_a_name_and_over_no_suffix() {
    for (authority, wildcard) in [
        ("api.x.org:443", Some("*.x.org:443")),
        ("a.b.c.x.org:8443", Some("*.b.c.x.org:8443")),
        ("x.org:443", None),
        ("shop.co.uk:443", None),
        ("www.shop.co.uk:443", Some("*.shop.co.uk:443")),
        ("you.github.io:443", None),
        ("a.you.github.io:443", Some("*.you.github.io:443")),
        ("bucket.s3.amazonaws.com:443", None),
        ("s3.amazonaws.com:443", None),
        ("sts.amazonaws.com:443", Some("*.amazonaws.com:443")),
        ("bucket.storage.googleapis.com:443", None),
        ("account.queue.core.windows.net:443", None),
        ("b.s3.us-west-000.backblazeb2.com:443", None),
        ("x-8080.euw.devtunnels.ms:443", None),
        ("me.m.pipedream.net:443", None),
        ("192.0.2.1:443", None),
        ("localhost:443", None),
        ("mozilla.cloudflare-dns.com:443", None),
    ] {
        let authority = parsed(Authority::parse(authority));
        let offered = Pattern::beside(&authority);
        assert_eq!(offered.as_ref().map(ToString::to_string).as_deref(), wildcard, "{authority}");
        assert!(offered.is_none_or(|pattern| pattern.covers(Effect::Allow, &authority)), "{authority}");
    }
}

#[test]
fn s4_nobody_is_asked_about_a_pin_to_a_denied_address() {
    Case::new()
        .asking()
        .deny(&["10.0.0.1:443"])
        .pin("db.example.com", &["10.0.0.2", "10.0.0.1"])
        .connect("db.example.com:443", "denied_by_rule 10.0.0.1:443")
        .connect("db.example.com:5432", "ask");
}

#[test]
fn n5_n6_a_wildcard_opens_no_names_of_strangers_below_it() {
    let wide = ["*.amazonaws.com", "*.backblazeb2.com:443", "*.core.windows.net", "*.a.you.github.io"];
    Case::new()
        .allow(&wide)
        .connect("sts.amazonaws.com:443", "allow *.amazonaws.com")
        .connect("evil-bucket.s3.amazonaws.com:443", "not_allowed")
        .connect("s3.amazonaws.com:443", "not_allowed")
        .plain("evil-bucket.s3.amazonaws.com:80", "not_allowed")
        .connect("api.us-west-000.backblazeb2.com:443", "allow *.backblazeb2.com:443")
        .connect("evil.s3.us-west-000.backblazeb2.com:443", "not_allowed")
        .connect("evil.queue.core.windows.net:443", "not_allowed")
        .connect("x.a.you.github.io:443", "allow *.a.you.github.io");
    Case::new().asking().allow(&wide).connect("evil-bucket.s3.amazonaws.com:443", "ask");
    // The wildcard of the bucket's own name, and a deny of all.
    Case::new()
        .allow(&["*.bucket.s3.amazonaws.com", "own.s3.amazonaws.com"])
        .connect("x.bucket.s3.amazonaws.com:443", "allow *.bucket.s3.amazonaws.com")
        .connect("own.s3.amazonaws.com:443", "allow own.s3.amazonaws.com");
    Case::new()
        .allow(&["own.s3.amazonaws.com"])
        .deny(&["*.amazonaws.com"])
        .connect("own.s3.amazonaws.com:443", "denied_by_rule *.amazonaws.com");
}

#[test]
fn d7_local_names_are_allowed_only_when_named_exactly_and_pinned() {
    Case::new()
        .asking()
        .allow(&["db", "localhost", "web.localhost", "*.app.localhost", "pinned"])
        .pin("pinned", &["10.0.0.9"])
        .pin("unlisted", &["10.0.0.9"])
        .pin("x.app.localhost", &["127.0.0.1"])
        .connect("db:443", "not_allowed db")
        .connect("localhost:443", "not_allowed localhost")
        .connect("web.localhost:443", "not_allowed web.localhost")
        .connect("x.app.localhost:443", "not_allowed *.app.localhost")
        .connect("other:443", "not_allowed")
        .connect("pinned:443", "allow pinned")
        .connect("unlisted:443", "ask");
}

#[test]
fn d8_a_public_name_server_is_opened_by_its_own_name_alone() {
    let wide = ["*.google.com", "*.cloudflare-dns.com", "*.one.one", "*.nextdns.io:8443"];
    Case::new()
        .allow(&wide)
        .allow(&["dns.google", "dns.quad9.net"])
        .connect("www.google.com:443", "allow *.google.com")
        .connect("dns.google.com:443", "not_allowed *.google.com")
        .connect("DNS.GOOGLE.COM.:443", "not_allowed *.google.com")
        .connect("mozilla.cloudflare-dns.com:443", "not_allowed *.cloudflare-dns.com")
        .connect("cloudflare-dns.com:443", "not_allowed")
        .connect("dns.nextdns.io:8443", "not_allowed *.nextdns.io:8443")
        .plain("dns.google.com:80", "not_allowed *.google.com")
        .connect("dns.google:443", "allow dns.google")
        .connect("dns.quad9.net:443", "allow dns.quad9.net");
    Case::new().asking().allow(&wide).connect("dns.google.com:443", "not_allowed *.google.com");
    Case::new().asking().connect("dns.google.com:443", "ask");
    Case::new()
        .allow(&wide)
        .deny(&["dns.google.com"])
        .connect("dns.google.com:443", "denied_by_rule dns.google.com");
}
