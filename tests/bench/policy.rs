//! Shows that deciding a request costs the same whatever the number of rules: `cargo bench --bench policy`.
#![allow(clippy::print_stdout, reason = "a benchmark's result goes to standard output")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use cloister::name::CloisterName;
use cloister::policy::{Authority, Origin, OriginKind, Pattern, Policy, PolicyInput, Request, Rule, Via};

const SIZES: [usize; 3] = [10, 1_000, 100_000];
const EVALUATIONS: usize = 200_000;
/// The fastest run counts: it is the one that was disturbed least.
const RUNS: usize = 5;

fn main() {
    let asked: Vec<Authority> = [
        "site-1.example.com:443",
        "site-2.example.com:443",
        "a.b.wild-3.example.org:443",
        "evil-site-1.example.com:443",
        "a.b.c.d.e.f.unlisted.example.net:443",
        "192.0.2.1:443",
    ]
    .iter()
    .map(|text| Authority::parse(text).expect("the names above are valid"))
    .collect();
    let mut smallest = None;
    for size in SIZES {
        let cost = measure(&policy(size), &asked);
        let base = *smallest.get_or_insert(cost);
        let ratio = cost.as_secs_f64() / base.as_secs_f64();
        println!("{size:>7} rules: {:>4} ns an evaluation, ratio {ratio:.2}", cost.as_nanos());
    }
}

/// Builds a policy of so many rules: exact and wildcard, allow and deny, with and without ports.
fn policy(size: usize) -> Policy {
    let origin = Origin::new(OriginKind::Global);
    let rule = |number: usize| {
        let text = match number % 4 {
            0 | 1 => format!("site-{number}.example.com"),
            2 => format!("site-{number}.example.com:8443"),
            _ => format!("*.wild-{number}.example.org"),
        };
        let pattern = Pattern::parse(&text).expect("the patterns above are valid");
        if number % 10 == 9 {
            Rule::deny(pattern, origin.clone())
        } else {
            Rule::allow(pattern, origin.clone())
        }
    };
    Policy::new(PolicyInput { rules: (0..size).map(rule).collect(), ..PolicyInput::default() })
}

/// Gives the time of one evaluation.
fn measure(policy: &Policy, asked: &[Authority]) -> Duration {
    let cloister = CloisterName::parse("bench").expect("the name is valid");
    let run = || {
        let start = Instant::now();
        for authority in asked.iter().cycle().take(EVALUATIONS) {
            let request = Request { cloister: &cloister, authority, via: Via::Connect, grant: None };
            let _decision = black_box(policy.evaluate(black_box(&request)));
        }
        start.elapsed()
    };
    let fastest = (0..RUNS).map(|_| run()).min().expect("there is at least one run");
    fastest.div_f64(f64::from(u32::try_from(EVALUATIONS).expect("the count is small")))
}
