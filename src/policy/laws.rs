//! The laws of the policy, checked on random rules, settings, requests and answers.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::name::CloisterName;

/// Few names, so that random rules and requests meet often.
const NAMES: [&str; 13] = [
    "example.com",
    "a.example.com",
    "b.a.example.com",
    "evil-example.com",
    "example.com.evil.net",
    "evil.net",
    "db",
    "web.localhost",
    "metadata.google.internal",
    "you.github.io",
    "amazonaws.com",
    "sts.amazonaws.com",
    "evil.s3.amazonaws.com",
];
const ADDRESSES: [&str; 8] = [
    "1.1.1.1",
    "10.0.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "[2606:4700::1111]",
    "[fd12::1]",
    "[::1]",
];
const PORTS: [u16; 5] = [22, 80, 443, 8443, 9999];
const KINDS: [OriginKind; 4] =
    [OriginKind::Builtin, OriginKind::Global, OriginKind::CloisterNix, OriginKind::Session];

/// An owned request.
#[derive(Debug, Clone)]
struct Asked {
    cloister: CloisterName,
    authority: Authority,
    via: Via,
}

impl Asked {
    fn request(&self) -> Request<'_> {
        Request { cloister: &self.cloister, authority: &self.authority, via: self.via, grant: None }
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let host = prop_oneof![3 => select(&NAMES[..]), 1 => select(&ADDRESSES[..])];
    let via = select(vec![Via::Connect, Via::Plain]);
    (host, select(&PORTS[..]), via).prop_map(|(host, port, via)| Asked {
        cloister: CloisterName::parse("app").unwrap(),
        authority: Authority::parse(&format!("{host}:{port}")).unwrap(),
        via,
    })
}

fn pattern() -> impl Strategy<Value = Pattern> {
    let host = prop_oneof![4 => select(&NAMES[..]), 1 => select(&ADDRESSES[..])];
    (host, any::<bool>(), proptest::option::of(select(&PORTS[..]))).prop_map(|(host, below, port)| {
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let wildcard = Pattern::parse(&format!("*.{host}{port}")).ok().filter(|_| below);
        wildcard.unwrap_or_else(|| Pattern::parse(&format!("{host}{port}")).unwrap())
    })
}

fn rule_of(effect: Effect) -> impl Strategy<Value = Rule> {
    (pattern(), select(&KINDS[..])).prop_map(move |(pattern, kind)| match effect {
        Effect::Allow => Rule::allow(pattern, Origin::new(kind)),
        Effect::Deny => Rule::deny(pattern, Origin::new(kind)),
    })
}

fn with_rule(mut input: PolicyInput, rule: Rule) -> Policy {
    input.rules.push(rule);
    Policy::new(input)
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = prop_oneof![3 => rule_of(Effect::Allow), 1 => rule_of(Effect::Deny)];
    proptest::collection::vec(rule, 0..12)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    let special = select(&ADDRESSES[..]).prop_map(|text| text.trim_matches(['[', ']']).parse().unwrap());
    prop_oneof![
        special,
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
        any::<u32>().prop_map(|bits| IpAddr::V6(Ipv4Addr::from_bits(bits).to_ipv6_mapped())),
        any::<u32>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(0x64_ff9b << 96 | u128::from(bits)))),
    ]
}

fn input() -> impl Strategy<Value = PolicyInput> {
    let name = || select(&NAMES[..]).prop_map(|name| DomainName::parse(name).unwrap());
    let ips = || proptest::collection::vec(ip(), 0..3);
    let pins = proptest::collection::btree_map(name(), ips(), 0..3);
    let private = proptest::collection::vec(name().prop_map(DomainPattern::from), 0..3);
    let socket = (ip(), select(&PORTS[..])).prop_map(|(ip, port)| SocketAddr::new(ip, port));
    let listening = proptest::collection::vec(socket, 0..3);
    let unlisted = select(vec![Unlisted::Ask, Unlisted::Reject]);
    (rules(), unlisted, pins, private, listening).prop_map(|(rules, unlisted, pins, private, listening)| {
        PolicyInput { rules, unlisted, pins, private, listening }
    })
}

/// Gives settings, and their rules in another order.
fn shuffled() -> impl Strategy<Value = (PolicyInput, Vec<Rule>)> {
    input().prop_flat_map(|input| (Just(input.clone()), Just(input.rules).prop_shuffle()))
}

/// Gives a request and a rule that denies it: by its name or a wildcard, with or without the port.
fn with_denial(asked: Asked) -> impl Strategy<Value = (Asked, Rule)> {
    let exact = Pattern::exactly(&asked.authority).to_string();
    let bare = exact.strip_suffix(&format!(":{}", asked.authority.port())).unwrap_or(&exact).to_owned();
    let above = [&exact, &bare].map(|text| text.split_once('.').map(|(_, parent)| format!("*.{parent}")));
    let texts = [exact, bare].into_iter().chain(above.into_iter().flatten());
    let patterns: Vec<_> = texts.filter_map(|text| Pattern::parse(&text).ok()).collect();
    (Just(asked), select(patterns), select(&KINDS[..]))
        .prop_map(|(asked, pattern, kind)| (asked, Rule::deny(pattern, Origin::new(kind))))
}

/// Tells what one rule says of a request by reading the rule alone: the model that the lookup is held against.
fn covers(rule: &Rule, request: &Request<'_>) -> bool {
    let authority = request.authority;
    let host = match (rule.pattern().host(), authority.host()) {
        (PatternHost::Ip(rule), Host::Ip(asked)) => rule == asked,
        (PatternHost::Domain(pattern), Host::Name(asked)) => {
            let is_strangers = pattern.is_wildcard()
                && asked.registrable().is_none_or(|own| {
                    pattern.name().as_str() != own && !pattern.name().as_str().ends_with(&format!(".{own}"))
                });
            pattern.matches(asked) && !(rule.effect() == Effect::Allow && is_strangers)
        }
        (PatternHost::Ip(_), Host::Name(_)) | (PatternHost::Domain(_), Host::Ip(_)) => false,
    };
    let port = match (rule.effect(), rule.pattern().port(), request.via) {
        (_, Some(port), _) => port == authority.port(),
        (Effect::Deny, None, _) => true,
        (Effect::Allow, None, Via::Connect) => authority.port() == 443,
        (Effect::Allow, None, Via::Plain) => authority.port() == 80,
    };
    host && port
}

fn is_allowed(policy: &Policy, asked: &Asked) -> bool {
    matches!(policy.evaluate(&asked.request()), Decision::Allow(_))
}

/// Shows what a decision says, without the rule that is shown with it.
fn verdict(decision: &Decision) -> &'static str {
    match decision {
        Decision::Allow(_) => "allow",
        Decision::Deny(denial) => denial.reason().code(),
        Decision::Ask(_) => "ask",
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_lookup_agrees_with_reading_every_rule(input in input(), asked in asked()) {
        let policy = Policy::new(input);
        let request = asked.request();
        let says = |effect| policy.rules().any(|rule| rule.effect() == effect && covers(rule, &request));
        let decision = policy.evaluate(&request);
        match &decision {
            Decision::Allow(allowed) => {
                prop_assert!(says(Effect::Allow) && !says(Effect::Deny));
                prop_assert!(covers(allowed.rule(), &request));
            }
            Decision::Deny(denial) => match denial.reason() {
                Reason::DeniedByRule | Reason::DeniedByUser => {
                    let rule = denial.rule().unwrap();
                    prop_assert!(rule.effect() == Effect::Deny && covers(rule, &request));
                }
                Reason::NotAllowed | Reason::AddressForbidden => prop_assert!(!says(Effect::Deny)),
                Reason::NoAddress => prop_assert!(false, "nothing was resolved"),
            },
            Decision::Ask(_) => prop_assert!(!says(Effect::Allow) && !says(Effect::Deny)),
        }
    }

    #[test]
    fn deny_beats_allow_whatever_the_order(
        input in input(), (asked, deny) in asked().prop_flat_map(with_denial), at in 0..12_usize,
    ) {
        let mut input = input;
        input.rules.insert(at.min(input.rules.len()), deny);
        let decision = Policy::new(input).evaluate(&asked.request());
        prop_assert!(matches!(verdict(&decision), "denied_by_rule" | "denied_by_user"));
    }

    #[test]
    fn the_order_of_rules_does_not_matter((input, shuffled) in shuffled(), asked in asked()) {
        let (before, after) = (Policy::new(input.clone()), Policy::new(PolicyInput { rules: shuffled, ..input }));
        prop_assert_eq!(is_allowed(&before, &asked), is_allowed(&after, &asked));
    }

    #[test]
    fn s4_adding_a_deny_never_widens(input in input(), asked in asked(), deny in rule_of(Effect::Deny)) {
        let policy = Policy::new(input.clone());
        let narrowed = with_rule(input, deny);
        prop_assert!(!is_allowed(&narrowed, &asked) || is_allowed(&policy, &asked));
    }

    #[test]
    fn adding_an_allow_never_narrows_and_widens_only_what_it_covers(
        input in input(), asked in asked(), allow in rule_of(Effect::Allow),
    ) {
        let was = is_allowed(&Policy::new(input.clone()), &asked);
        let is = is_allowed(&with_rule(input, allow.clone()), &asked);
        prop_assert!(!was || is);
        prop_assert!(was || !is || covers(&allow, &asked.request()));
    }

    #[test]
    fn s2_without_an_allow_rule_nothing_is_allowed(input in input(), asked in asked()) {
        let rules = input.rules.into_iter().filter(|rule| rule.effect() == Effect::Deny).collect();
        let policy = Policy::new(PolicyInput { rules, ..input });
        prop_assert!(!is_allowed(&policy, &asked));
    }

    #[test]
    fn a8_a_grant_says_to_its_request_what_the_rule_would_say(
        input in input(), asked in asked(), effect in select(vec![Effect::Allow, Effect::Deny]),
    ) {
        let pattern = Pattern::exactly(&asked.authority);
        let origin = Origin::new(OriginKind::Session);
        let rule = match effect {
            Effect::Allow => Rule::allow(pattern, origin),
            Effect::Deny => Rule::deny(pattern, origin),
        };
        let rule = Arc::new(rule);
        let granted = Policy::new(input.clone()).evaluate(&Request { grant: Some(&rule), ..asked.request() });
        let ruled = with_rule(input, Rule::clone(&rule)).evaluate(&asked.request());
        // Which of several denials is told may differ, and what a wildcard refuses by its breadth.
        let is = |decision: &Decision| matches!(decision, Decision::Allow(_));
        prop_assert_eq!(is(&granted), is(&ruled));
    }

    #[test]
    fn n1_every_spelling_of_a_name_gives_the_same_verdict(input in input(), asked in asked(), upper in any::<u64>()) {
        let text = asked.authority.host().to_string();
        let mut spelled: String = text
            .chars()
            .enumerate()
            .map(|(index, c)| if upper >> (index % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c })
            .collect();
        if upper & 1 == 1 && matches!(asked.authority.host(), Host::Name(_)) {
            spelled.push('.');
        }
        let authority = Authority::new(Host::parse(&spelled).unwrap(), asked.authority.port()).unwrap();
        let respelled = Asked { authority, ..asked.clone() };
        let policy = Policy::new(input);
        let (left, right) = (policy.evaluate(&asked.request()), policy.evaluate(&respelled.request()));
        prop_assert_eq!((verdict(&left), left.rule()), (verdict(&right), right.rule()));
    }

    #[test]
    fn n9_connect_never_reaches_80_nor_plain_443(input in input(), asked in asked()) {
        if is_allowed(&Policy::new(input), &asked) {
            prop_assert!(!matches!((asked.via, asked.authority.port()), (Via::Connect, 80) | (Via::Plain, 443)));
        }
    }

    #[test]
    fn n8_a_permit_holds_only_addresses_that_its_name_may_have(
        input in input(), asked in asked(), answers in proptest::collection::vec(ip(), 0..4),
    ) {
        // Every host is listed here, so that the addresses alone decide.
        let authority = asked.authority.to_string();
        let mut input = input;
        input.rules = vec![Rule::allow(Pattern::parse(&authority).unwrap(), Origin::new(OriginKind::Global))];
        let policy = Policy::new(input.clone());
        let Decision::Allow(allowed) = policy.evaluate(&asked.request()) else { return Ok(()) };
        let known = match allowed.destination() {
            Destination::Known(addresses) => Some(addresses.to_vec()),
            Destination::Resolve(_) => None,
        };
        let Ok(permit) = allowed.permit(&answers, |_| false) else { return Ok(()) };
        let is_private = input.private.iter().any(|private| private.to_string() == asked.authority.host().to_string());
        let is_literal = matches!(asked.authority.host(), Host::Ip(_));
        let is_pinned = known.is_some() && !is_literal;
        prop_assert!(!permit.addresses().is_empty());
        for address in permit.addresses() {
            let class = AddressClass::of(address.ip());
            prop_assert!(!class.is_never_allowed());
            prop_assert!(class != AddressClass::Loopback || is_pinned);
            prop_assert!(class == AddressClass::Public || is_pinned || is_literal || is_private);
            prop_assert_eq!(address.port(), asked.authority.port());
            prop_assert_eq!(address.ip(), address.ip().to_canonical());
            let is_address = |own: &SocketAddr| SocketAddr::new(own.ip().to_canonical(), own.port()) == *address;
            prop_assert!(!input.listening.iter().any(is_address));
            let source = known.as_ref().unwrap_or(&answers);
            prop_assert!(source.iter().any(|ip| ip.to_canonical() == address.ip()));
        }
        // All answers were checked: none of the forbidden ones is merely left out.
        let source = known.unwrap_or(answers);
        prop_assert!(source.iter().all(|ip| permit.addresses().iter().any(|address| address.ip() == ip.to_canonical())));
        prop_assert_eq!(policy.withdraws(&permit.request(), permit.addresses()), None);
    }
}
