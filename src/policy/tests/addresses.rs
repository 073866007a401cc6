//! Which addresses an allowed name is permitted to have, and when a permit is withdrawn.

use super::*;

#[test]
fn n7_address_literals_need_a_rule_of_their_own() {
    Case::new()
        .allow(&["1.1.1.1", "10.1.2.3:5432", "[2606:4700::1111]", "[fd12::1]"])
        .connect("1.1.1.1:443", "allow 1.1.1.1")
        .connect("[::ffff:1.1.1.1]:443", "allow 1.1.1.1")
        .connect("1.0.0.1:443", "not_allowed")
        .connect("10.1.2.3:5432", "allow 10.1.2.3:5432")
        .connect("10.1.2.3:443", "not_allowed")
        .connect("[2606:4700::1111]:443", "allow [2606:4700::1111]")
        .resolved("[fd12::1]:443", &[], "[[fd12::1]:443]")
        .resolved("[::ffff:10.1.2.3]:5432", &[], "[10.1.2.3:5432]");
}

#[test]
fn n8_special_addresses_are_never_reached_as_literals() {
    for address in [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "0.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "169.254.1.1",
        "[::1]",
        "[::]",
        "[ff02::1]",
        "[fe80::1]",
        "[2001:db8::1]",
        "[100::1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::1]",
        "[::127.0.0.1]",
    ] {
        let authority = format!("{address}:443");
        Case::new().asking().allow(&[address]).connect(&authority, "address_forbidden");
        Case::new().asking().connect(&authority, "address_forbidden");
    }
}

#[test]
fn k12_metadata_is_never_reached() {
    let names = ["metadata.google.internal", "instance-data.ec2.internal", "metadata"];
    let addresses = ["169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "[fd00:ec2::254]"];
    for host in names.into_iter().chain(addresses) {
        let mut case = Case::new().asking().allow(&[host]);
        if names.contains(&host) {
            case = case.pin(host, &["10.0.0.1"]).private(&[host]);
        }
        case.connect(&format!("{host}:443"), "address_forbidden")
            .plain(&format!("{host}:80"), "address_forbidden");
    }
    let forbidden = |address, class| format!("address_forbidden `{address}` is a {class} address");
    let case = Case::new()
        .allow(&["pinned.example.com", "corp.example.com"])
        .pin("pinned.example.com", &["169.254.169.254"])
        .private(&["corp.example.com"]);
    case.resolved("pinned.example.com:443", &["1.1.1.1"], &forbidden("169.254.169.254", "cloud metadata"))
        .resolved("corp.example.com:443", &["fd00:ec2::254"], &forbidden("fd00:ec2::254", "cloud metadata"))
        .resolved(
            "corp.example.com:443",
            &["100.100.100.200"],
            &forbidden("100.100.100.200", "cloud metadata"),
        )
        .resolved("corp.example.com:443", &["169.254.7.7"], &forbidden("169.254.7.7", "link-local"));
}

#[test]
fn d4_one_forbidden_answer_refuses_all() {
    let case = Case::new().allow(&["example.com"]);
    case.resolved("example.com:443", &["1.1.1.1", "2606:4700::1111"], "[1.1.1.1:443, [2606:4700::1111]:443]")
        .resolved("example.com:443", &["1.1.1.1", "1.1.1.1", "::ffff:1.1.1.1"], "[1.1.1.1:443]")
        .resolved("example.com:443", &[], "dns_failed -");
    for (address, class) in [
        ("127.0.0.1", "loopback"),
        ("10.0.0.1", "private"),
        ("192.168.1.1", "private"),
        ("fd12::1", "private"),
        ("100.64.0.1", "carrier-grade NAT"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("192.0.2.1", "documentation"),
        ("198.18.0.1", "benchmarking"),
        ("240.0.0.1", "reserved"),
        ("fe80::1", "link-local"),
        ("64:ff9b::10.0.0.1", "private"),
    ] {
        let ip = address.parse::<IpAddr>().unwrap();
        let verdict = format!("address_forbidden `{ip}` is a {class} address");
        case.resolved("example.com:443", &[address], &verdict)
            .resolved("example.com:443", &["1.1.1.1", address], &verdict)
            .resolved("example.com:443", &[address, "1.1.1.1"], &verdict);
    }
    let mapped = "address_forbidden `10.0.0.1` is a private address";
    case.resolved("example.com:443", &["::ffff:10.0.0.1"], mapped);
}

#[test]
fn a_name_may_be_private_only_if_the_settings_say_so() {
    let case = Case::new()
        .allow(&["db.corp.example.com", "corp.example.com", "git.example.com"])
        .private(&["*.corp.example.com", "git.example.com"]);
    for address in ["10.0.0.1", "100.64.0.1"] {
        case.resolved(
            "db.corp.example.com:443",
            &[address, "1.1.1.1"],
            &format!("[{address}:443, 1.1.1.1:443]"),
        )
        .resolved("git.example.com:443", &[address], &format!("[{address}:443]"));
    }
    let forbidden = |address, class| format!("address_forbidden `{address}` is a {class} address");
    case.resolved("git.example.com:443", &["127.0.0.1"], &forbidden("127.0.0.1", "loopback")).resolved(
        "corp.example.com:443",
        &["10.0.0.1"],
        &forbidden("10.0.0.1", "private"),
    );
}

#[test]
fn n5_n6_the_names_of_strangers_below_a_private_wildcard_are_not_private() {
    Case::new()
        .allow(&["evil.s3.amazonaws.com", "sts.amazonaws.com"])
        .private(&["*.amazonaws.com"])
        .resolved("sts.amazonaws.com:443", &["10.0.0.1"], "[10.0.0.1:443]")
        .resolved(
            "evil.s3.amazonaws.com:443",
            &["10.0.0.1"],
            "address_forbidden `10.0.0.1` is a private address",
        );
}

#[test]
fn a_pin_replaces_the_dns_and_allows_nothing_by_itself() {
    let case = Case::new()
        .allow(&["db.example.com:5432", "web.example.com", "none.example.com"])
        .pin("db.example.com", &["10.0.0.1", "::ffff:10.0.0.2"])
        .pin("web.example.com", &["127.0.0.1"])
        .pin("none.example.com", &[])
        .pin("other.example.com", &["10.0.0.1"]);
    case.resolved("db.example.com:5432", &["1.1.1.1"], "[10.0.0.1:5432, 10.0.0.2:5432]")
        .resolved("web.example.com:443", &[], "[127.0.0.1:443]")
        .resolved("none.example.com:443", &["1.1.1.1"], "dns_failed -")
        .connect("other.example.com:443", "not_allowed");
    let Decision::Allow(allowed) = evaluate(&case.build(), "db.example.com:5432", Via::Connect, None) else {
        panic!()
    };
    assert_eq!(allowed.destination(), Destination::Known(&ips(&["10.0.0.1", "10.0.0.2"])));
    for address in ["0.0.0.0", "224.0.0.1", "169.254.1.1", "192.0.2.1", "::"] {
        let class = AddressClass::of(address.parse().unwrap());
        let verdict = format!("address_forbidden `{address}` is a {class} address");
        Case::new().allow(&["a.example.com"]).pin("a.example.com", &[address]).resolved(
            "a.example.com:443",
            &[],
            &verdict,
        );
    }
}

#[test]
fn d3_only_an_allowed_name_says_what_to_resolve() {
    let policy = Case::new().allow(&["example.com", "1.1.1.1"]).build();
    let Decision::Allow(allowed) = evaluate(&policy, "example.com:443", Via::Connect, None) else { panic!() };
    assert_eq!(allowed.destination(), Destination::Resolve(&parsed(DomainName::parse("example.com"))));
    let Decision::Allow(allowed) = evaluate(&policy, "1.1.1.1:443", Via::Connect, None) else { panic!() };
    assert_eq!(allowed.destination(), Destination::Known(&ips(&["1.1.1.1"])));
}

#[test]
fn h18_the_guardians_own_sockets_are_never_reached() {
    let own = |address| format!("address_forbidden the guardian itself listens on `{address}`");
    let case = Case::new()
        .allow(&[
            "a.example.com:9999",
            "a.example.com:8080",
            "b.example.com:9999",
            "10.0.0.1:7000",
            "c.example.com:9999",
        ])
        .pin("a.example.com", &["127.0.0.1"])
        .pin("b.example.com", &["127.0.0.2"])
        .pin("c.example.com", &["::1"])
        .listening(&["127.0.0.1:9999", "[::ffff:10.0.0.1]:7000"]);
    case.resolved("a.example.com:9999", &[], &own("127.0.0.1:9999"))
        .resolved("a.example.com:8080", &[], "[127.0.0.1:8080]")
        .resolved("b.example.com:9999", &[], "[127.0.0.2:9999]")
        .resolved("10.0.0.1:7000", &[], &own("10.0.0.1:7000"));
    for everywhere in ["0.0.0.0:9999", "[::]:9999", "[::ffff:0.0.0.0]:9999"] {
        let case = Case { input: PolicyInput { listening: Vec::new(), ..case.input.clone() } };
        case.listening(&[everywhere])
            .resolved("a.example.com:9999", &[], &own("127.0.0.1:9999"))
            .resolved("b.example.com:9999", &[], &own("127.0.0.2:9999"))
            .resolved("c.example.com:9999", &[], &own("[::1]:9999"))
            .resolved("a.example.com:8080", &[], "[127.0.0.1:8080]");
    }
}

#[test]
fn a_permit_carries_what_was_asked_and_checked() {
    let policy = Case::new().allow(&["example.com"]).build();
    let permit = permit(&policy, "example.com:443", &["1.1.1.1"]).unwrap();
    assert_eq!(permit.authority(), &parsed(Authority::parse("example.com:443")));
    assert_eq!(permit.cloister().as_str(), "app");
    assert_eq!(permit.rule().to_string(), "example.com");
    assert_eq!(permit.addresses(), ["1.1.1.1:443".parse::<SocketAddr>().unwrap()]);
    assert_eq!((permit.request().via, permit.request().grant), (Via::Connect, None));
}

#[test]
fn t10_a_permit_is_withdrawn_with_what_allowed_it() {
    let withdrawn = |before: Case, after: Case, authority: &str, answers: &[&str]| {
        let permit = permit(&before.build(), authority, answers).unwrap();
        assert_eq!(before.build().withdraws(&permit.request(), permit.addresses()), None);
        after.build().withdraws(&permit.request(), permit.addresses()).map(|denial| denial.reason())
    };
    let listed = || Case::new().allow(&["example.com"]);
    assert_eq!(withdrawn(listed(), listed().allow(&["a.com"]), "example.com:443", &["1.1.1.1"]), None);
    assert_eq!(withdrawn(listed(), Case::new(), "example.com:443", &["1.1.1.1"]), Some(Reason::NotAllowed));
    assert_eq!(
        withdrawn(listed(), Case::new().asking(), "example.com:443", &["1.1.1.1"]),
        Some(Reason::NotAllowed)
    );
    assert_eq!(
        withdrawn(
            listed(),
            listed().deny(&["*.com.example", "example.com"]),
            "example.com:443",
            &["1.1.1.1"]
        ),
        Some(Reason::DeniedByRule)
    );
    assert_eq!(
        withdrawn(listed().private(&["example.com"]), listed(), "example.com:443", &["10.0.0.1"]),
        Some(Reason::AddressForbidden)
    );
    assert_eq!(
        withdrawn(
            listed().pin("example.com", &["10.0.0.1"]),
            listed().pin("example.com", &["10.0.0.2"]),
            "example.com:443",
            &[]
        ),
        Some(Reason::AddressForbidden)
    );
}

/// Expects that the permit is refused by a rule, whose pattern is `rule`.
#[track_caller]
fn check_denied(case: &Case, authority: &str, answers: &[&str], rule: &str) {
    let denial = permit(&case.build(), authority, answers).unwrap_err();
    let shown = denial.rule().map(ToString::to_string);
    assert_eq!((denial.reason(), shown.as_deref()), (Reason::DeniedByRule, Some(rule)), "{authority}");
}

#[test]
fn s4_a_denied_address_is_denied_for_names_and_pins_too() {
    let case = Case::new()
        .allow(&["example.com", "example.com:8443", "db.example.com:5432", "*.corp.example.com"])
        .private(&["*.corp.example.com"])
        .pin("db.example.com", &["127.0.0.1", "::ffff:10.0.0.1"])
        .deny(&["1.1.1.1", "10.0.0.1", "8.8.8.8:443", "[2606:4700::1111]", "10.0.0.7:443"]);
    check_denied(&case, "example.com:443", &["1.1.1.1"], "1.1.1.1");
    check_denied(&case, "example.com:443", &["9.9.9.9", "1.1.1.1"], "1.1.1.1");
    check_denied(&case, "example.com:443", &["2606:4700::1111"], "[2606:4700::1111]");
    check_denied(&case, "example.com:443", &["8.8.8.8"], "8.8.8.8:443");
    check_denied(&case, "db.example.com:5432", &[], "10.0.0.1");
    check_denied(&case, "git.corp.example.com:443", &["10.0.0.7"], "10.0.0.7:443");
    // Mapped, NAT64, 6to4, and both addresses of Teredo.
    for address in [
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
        "2002:101:101::1",
        "2001:0:101:101::f7f7:f7f7",
        "2001:0:808:404::fefe:fefe",
    ] {
        check_denied(&case, "example.com:443", &[address], "1.1.1.1");
    }
    // A rule with a port denies that port alone.
    case.resolved("example.com:8443", &["8.8.8.8"], "[8.8.8.8:8443]").resolved(
        "example.com:443",
        &["9.9.9.9"],
        "[9.9.9.9:443]",
    );
    // What is denied is denied as a literal in every form, before anybody is asked.
    Case::new()
        .asking()
        .deny(&["1.1.1.1"])
        .connect("[64:ff9b::1.1.1.1]:443", "denied_by_rule 1.1.1.1")
        .connect("[::ffff:1.1.1.1]:443", "denied_by_rule 1.1.1.1")
        .connect("[64:ff9b::1.1.1.2]:443", "not_allowed");
    // An allow rule opens one form alone.
    Case::new().allow(&["1.1.1.1"]).connect("[64:ff9b::1.1.1.1]:443", "not_allowed");
}

#[test]
fn s4_an_answer_that_denies_an_address_holds_for_names() {
    let rule = Rule::deny(parsed(Pattern::parse("1.1.1.1")), Origin::new(OriginKind::Session));
    let policy = Case::new().allow(&["example.com"]).rule(rule).build();
    let denial = permit(&policy, "example.com:443", &["1.1.1.1"]).unwrap_err();
    assert_eq!(denial.reason(), Reason::DeniedByUser);
    assert_eq!(denial.detail(), Some("`example.com` stands for `1.1.1.1`"));
}

#[test]
fn t10_s4_a_new_deny_rule_on_an_address_withdraws_names_and_pins() {
    let listed =
        || Case::new().allow(&["example.com", "db.example.com"]).pin("db.example.com", &["10.0.0.1"]);
    for (authority, answers, denied) in [
        ("example.com:443", &["9.9.9.9", "1.1.1.1"][..], "1.1.1.1"),
        ("example.com:443", &["64:ff9b::1.1.1.1"], "1.1.1.1:443"),
        ("db.example.com:443", &[], "10.0.0.1"),
    ] {
        let permit = permit(&listed().build(), authority, answers).unwrap();
        let (request, addresses) = (permit.request(), permit.addresses());
        let after = |rule| listed().deny(&[rule]).build();
        let withdrawn = after(denied).withdraws(&request, addresses).map(|denial| denial.reason());
        assert_eq!(withdrawn, Some(Reason::DeniedByRule), "{authority}");
        assert_eq!(after("1.1.1.1:8443").withdraws(&request, addresses), None);
    }
}

#[test]
fn t11_h18_an_address_of_this_machine_counts_as_loopback() {
    let own = ips(&["10.0.0.5", "8.8.4.4", "2600::5"]);
    let case = Case::new()
        .allow(&[
            "example.com",
            "git.corp.example.com",
            "db.example.com",
            "db.example.com:9999",
            "10.0.0.5",
            "[2600::5]",
        ])
        .private(&["*.corp.example.com"])
        .pin("db.example.com", &["10.0.0.5"])
        .listening(&["0.0.0.0:9999"]);
    let shown = |authority: &str, answers: &[&str]| {
        let Decision::Allow(allowed) = evaluate(&case.build(), authority, Via::Connect, None) else {
            panic!()
        };
        match allowed.permit(&ips(answers), |address| own.contains(&address)) {
            Ok(permit) => format!("{:?}", permit.addresses()),
            Err(denial) => format!("{} {}", denial.reason().code(), denial.detail().unwrap_or("-")),
        }
    };
    let forbidden = |address| format!("address_forbidden `{address}` belongs to this machine");
    assert_eq!(shown("example.com:443", &["8.8.4.4"]), forbidden("8.8.4.4"));
    assert_eq!(shown("example.com:443", &["1.1.1.1", "::ffff:8.8.4.4"]), forbidden("8.8.4.4"));
    assert_eq!(shown("example.com:443", &["64:ff9b::8.8.4.4"]), forbidden("64:ff9b::808:404"));
    assert_eq!(shown("git.corp.example.com:443", &["10.0.0.5"]), forbidden("10.0.0.5"));
    assert_eq!(shown("git.corp.example.com:443", &["10.0.0.6"]), "[10.0.0.6:443]");
    assert_eq!(shown("10.0.0.5:443", &[]), forbidden("10.0.0.5"));
    assert_eq!(shown("[2600::5]:443", &[]), forbidden("2600::5"));
    // Only a pin opens it, and the guardian's own sockets stay closed even then.
    assert_eq!(shown("db.example.com:443", &[]), "[10.0.0.5:443]");
    assert_eq!(
        shown("db.example.com:9999", &[]),
        "address_forbidden the guardian itself listens on `10.0.0.5:9999`"
    );
}
