//! Ratios within a round, their medians and quartiles, and the goals.

use std::collections::BTreeMap;

use super::load::Measure;

/// What was measured: one value a round, by kind of work and peer.
#[derive(Default)]
pub(crate) struct Results(BTreeMap<(&'static str, &'static str), Vec<Measure>>);

/// Which of the values of a measure is meant.
pub(crate) type Field = fn(&Measure) -> f64;

pub(crate) const RATE: Field = |measure| measure.rate;
pub(crate) const CPU: Field = |measure| measure.cpu;
pub(crate) const P50: Field = |measure| measure.p50;

/// What a value should be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// It is only told.
    None,
}

impl Results {
    pub(crate) fn add(&mut self, work: &'static str, peer: &'static str, measure: Measure) {
        self.0.entry((work, peer)).or_default().push(measure);
    }

    /// The values of one peer, round by round; none where the peer did not take part.
    pub(crate) fn values(&self, work: &'static str, peer: &'static str, field: Field) -> Vec<f64> {
        self.0.get(&(work, peer)).map(|measures| measures.iter().map(field).collect()).unwrap_or_default()
    }

    /// One peer over another, within each round.
    pub(crate) fn ratios(&self, work: &'static str, peers: [&'static str; 2], field: Field) -> Vec<f64> {
        let [one, base] = peers.map(|peer| self.values(work, peer, field));
        one.iter().zip(base).map(|(one, base)| one / base).collect()
    }

    /// Says for every kind of work what every peer reached.
    pub(crate) fn print_medians(&self) {
        println!("\n{:<16}{:<16}{:>14}{:>14}{:>12}", "work", "peer", "a second", "CPU us", "p50 us");
        for (work, peer) in self.0.keys() {
            let of = |field| quartiles(self.values(work, peer, field))[1];
            let (rate, cpu, p50) = (of(RATE), of(CPU) * 1e6, of(P50));
            println!("{work:<16}{peer:<16}{rate:>14.2}{cpu:>14.1}{p50:>12.1}");
        }
    }
}

pub(crate) fn print_title() {
    println!("\n{:<58}{:>8}{:>18}  goal", "", "median", "quartiles");
}

/// Prints one line, unless there is nothing to tell.
pub(crate) fn print_row(what: &str, values: Vec<f64>, goal: Goal) {
    if values.is_empty() {
        println!("{what:<58}{:>8}", "-");
        return;
    }
    let [low, median, high] = quartiles(values);
    let verdict = |met: bool| if met { "met" } else { "MISSED" };
    let goal = match goal {
        Goal::AtLeast(least) => format!("at least {least}: {}", verdict(median >= least)),
        Goal::AtMost(most) => format!("at most {most}: {}", verdict(median <= most)),
        Goal::None => String::new(),
    };
    println!("{what:<58}{median:>8.3}{:>18}  {goal}", format!("{low:.3}-{high:.3}"));
}

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    [last / 4, values.len() / 2, last - last / 4].map(|at| values[at])
}
