//! From findings to a verdict for each threat.

use serde::Serialize;

use super::attacks::{Aim, Goal, Probe, ROWS};
use super::run::Found;
use crate::init::probe::Finding;

/// What is known about one threat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every attempt was stopped, and was shown to succeed outside.
    Held,
    /// An attempt succeeded.
    Broken,
    /// It could not be shown that the attempts would succeed anywhere.
    Inconclusive,
    /// This host has nothing that could be attacked.
    NotApplicable,
}

impl Verdict {
    /// The words that a person reads.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Broken => "broken",
            Self::Inconclusive => "inconclusive",
            Self::NotApplicable => "not applicable",
        }
    }

    /// Tells whether nothing has to be done about it.
    pub fn is_fine(self) -> bool {
        matches!(self, Self::Held | Self::NotApplicable)
    }
}

/// The result for one threat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its number.
    pub id: &'static str,
    /// What it is about.
    pub what: &'static str,
    /// What is known.
    pub result: Verdict,
    /// How it is known.
    pub detail: String,
}

/// One row for each threat of the table, in its order.
pub(super) fn rows(probes: &[Probe], found: &[Found], aim: &Aim) -> Vec<Row> {
    ROWS.iter()
        .map(|(id, what)| {
            let (result, detail) = match aim.absent(id) {
                Some(reason) => (Verdict::NotApplicable, reason.to_owned()),
                None => match &aim.roots_own {
                    Some(why) if *id == "K9" => {
                        (Verdict::Broken, format!("its processes are root's on this host: {why}"))
                    }
                    _ => judge(id, probes, found),
                },
            };
            Row { id, what, result, detail }
        })
        .collect()
}

/// What one probe came to.
enum Came<'a> {
    Stopped {
        is_shown: bool,
    },
    /// It did what it has to do.
    Worked,
    /// Something stopped it before its own ceiling did, which is its proof.
    Bounded,
    Succeeded(&'a str),
    Unshown(&'a str),
}

fn judge(id: &str, probes: &[Probe], found: &[Found]) -> (Verdict, String) {
    let (mut stopped, mut shown, mut worked, mut bounded) = (0_usize, 0_usize, 0_usize, 0_usize);
    let mut broken = Vec::new();
    let mut unshown = Vec::new();
    for (number, probe) in probes.iter().enumerate().filter(|(_, probe)| probe.id == id) {
        match came(probe, found.iter().filter(|found| found.probe == number)) {
            Came::Stopped { is_shown } => {
                stopped += 1;
                shown += usize::from(is_shown);
            }
            Came::Worked => worked += 1,
            Came::Bounded => bounded += 1,
            Came::Succeeded(detail) => broken.push(format!("{}: {detail}", probe.what)),
            Came::Unshown(why) => unshown.push(format!("{}: {why}", probe.what)),
        }
    }
    if !broken.is_empty() {
        return (Verdict::Broken, listed(&broken));
    }
    if !unshown.is_empty() {
        return (Verdict::Inconclusive, listed(&unshown));
    }
    if shown + worked + bounded == 0 {
        return (Verdict::Inconclusive, "nothing of it could be shown to succeed outside".to_owned());
    }
    let counts = [
        (stopped, format!("{stopped} stopped, {shown} of them seen to succeed outside")),
        (worked, format!("{worked} answered as they have to be")),
        (bounded, format!("{bounded} stopped below their own ceiling")),
    ];
    let said: Vec<String> =
        counts.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect();
    (Verdict::Held, said.join("; "))
}

/// The first few, and how many there are.
fn listed(all: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = all.len().saturating_sub(SHOWN);
    let text = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if more > 0 { format!("{text}; and {more} more") } else { text }
}

fn came<'a>(probe: &Probe, found: impl Iterator<Item = &'a Found>) -> Came<'a> {
    let (own, controls): (Vec<&Found>, Vec<&Found>) = found.partition(|found| found.is_attack);
    let Some(own) = own.first() else {
        return Came::Unshown("it was not tried");
    };
    let is_shown = controls.iter().any(|control| control.finding.is_reached());
    match (&own.finding, probe.goal) {
        (Finding::Failed(why), _) | (Finding::Refused(why), Goal::Works) => Came::Unshown(why),
        (Finding::Reached(detail), Goal::Stopped | Goal::StoppedIfAnywhere) => Came::Succeeded(detail),
        (Finding::Reached(_), Goal::Works) => Came::Worked,
        (Finding::Refused(_), _) if probe.is_alone() => Came::Bounded,
        (Finding::Refused(_), Goal::Stopped) if !is_shown => {
            Came::Unshown(controls.first().map_or("no control", |control| control.finding.detail()))
        }
        (Finding::Refused(_), Goal::Stopped | Goal::StoppedIfAnywhere) => Came::Stopped { is_shown },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::probe::Attack;
    use crate::session::doctor::attacks::Place;

    fn reached() -> Finding {
        Finding::Reached("in".to_owned())
    }

    fn refused() -> Finding {
        Finding::Refused("no".to_owned())
    }

    #[track_caller]
    fn check(goal: Goal, inside: Finding, outside: Option<Finding>, expected: Verdict) {
        let probe = Probe {
            id: "K1",
            what: "attempt".to_owned(),
            place: Place::Sandbox,
            attack: Attack::Descriptors,
            controls: vec![(Place::Host, Attack::Descriptors)],
            goal,
        };
        let mut found = vec![Found { probe: 0, is_attack: true, finding: inside }];
        found.extend(outside.map(|finding| Found { probe: 0, is_attack: false, finding }));
        assert_eq!(judge("K1", &[probe], &found).0, expected);
    }

    #[test]
    fn held_means_stopped_inside_and_shown_outside() {
        check(Goal::Stopped, refused(), Some(reached()), Verdict::Held);
        check(Goal::Stopped, refused(), Some(refused()), Verdict::Inconclusive);
        check(Goal::Stopped, refused(), None, Verdict::Inconclusive);
        check(Goal::StoppedIfAnywhere, refused(), Some(reached()), Verdict::Held);
        check(Goal::StoppedIfAnywhere, refused(), Some(refused()), Verdict::Inconclusive);
    }

    #[test]
    fn what_succeeds_inside_is_broken_whatever_happens_outside() {
        check(Goal::Stopped, reached(), Some(refused()), Verdict::Broken);
        check(Goal::StoppedIfAnywhere, reached(), None, Verdict::Broken);
    }

    #[test]
    fn what_has_to_work_and_does_not_proves_nothing() {
        check(Goal::Works, refused(), None, Verdict::Inconclusive);
        check(Goal::Works, reached(), None, Verdict::Held);
        check(Goal::Stopped, Finding::Failed("broke".to_owned()), Some(reached()), Verdict::Inconclusive);
    }

    #[test]
    fn a_threat_without_a_probe_is_inconclusive() {
        assert_eq!(judge("K1", &[], &[]).0, Verdict::Inconclusive);
    }
}
