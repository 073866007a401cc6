//! How the guardian is, as people and scripts ask it.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use rustix::process::{Resource, getrlimit};

use super::live::Broken;
use super::{Registry, RegistryError, Served};
use crate::audit::AuditError;
use crate::config::{Config, UpstreamScheme};
use crate::guardian::control::api::{
    API_VERSION, CloisterStatus, LastDenial, ProcessStatus, Reloads, SettingsProblem, Status, Totals,
};
use crate::guardian::control::judgement::Judgement;
use crate::name::CloisterName;
use crate::policy::Authority;
use crate::proxy::{Limits, Policies as _};
use crate::text::{Untrusted, with_causes};

/// Refusals of what came too fast.
const TOO_FAST: [&str; 1] = ["rate_limited"];
/// Refusals of what was one too many.
const TOO_MANY: [&str; 2] = ["too_many_tunnels", "overloaded"];

impl Registry {
    pub(in crate::guardian) fn status(&self) -> Status {
        let synced = self.log.sync().and_then(|()| self.log.head());
        let audit_waits = synced.as_ref().is_err_and(AuditError::may_pass);
        let (audit_head, sync_problem) = match synced {
            Ok(head) => (head.to_string(), None),
            Err(error) => (String::new(), Some(with_causes(&error))),
        };
        let (broken, reloads) = self.settings();
        let cloisters: Vec<_> =
            self.served().values().map(|served| self.cloister_status(served, &broken)).collect();
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: API_VERSION,
            uptime_s: self.started.elapsed().as_secs(),
            audit_head,
            audit_problem: self.trouble.last().or(sync_problem),
            audit_waits,
            draining: self.draining(),
            audit_unsynced: self.log.lag().map_or(0, |lag| lag.records),
            settings_problems: broken.iter().map(Broken::told).collect(),
            foreign: self.live().foreign.iter().map(ToString::to_string).collect(),
            page: self.approvals.page_address(),
            reloads,
            name_servers: name_servers(),
            process: process(),
            totals: totals(&cloisters),
            cloisters,
        }
    }

    /// How every cloister is served.
    pub(in crate::guardian) fn cloister_statuses(&self) -> Vec<CloisterStatus> {
        let (broken, _) = self.settings();
        self.served().values().map(|served| self.cloister_status(served, &broken)).collect()
    }

    /// What is wrong with the audit log, the settings and the answers that are kept, in words.
    pub(in crate::guardian) fn problem_texts(&self) -> Vec<String> {
        let audit = self.trouble.last().map(|problem| format!("the audit log can't be written: {problem}"));
        let live = self.live();
        let broken = live.broken.iter().flat_map(|broken| &broken.problems);
        let broken = broken.map(|problem| format!("{problem} (the rules before it hold)"));
        let foreign = live.foreign.iter().map(|problem| format!("{problem} (it is of no effect)"));
        audit.into_iter().chain(broken).chain(foreign).collect()
    }

    /// The tunnels that the guardian before this one still carries.
    pub(super) fn draining(&self) -> usize {
        self.predecessor.get().map_or(0, |predecessor| predecessor.carried())
    }

    /// What the rules that hold now say of a destination.
    pub(in crate::guardian) fn judge(
        &self,
        cloister: &CloisterName,
        authority: &Authority,
    ) -> Result<Judgement, RegistryError> {
        let served = self.served();
        let served = served.get(cloister).ok_or_else(|| RegistryError::Unknown(cloister.clone()))?;
        let policy = served.policy.current().ok_or_else(|| RegistryError::Unknown(cloister.clone()))?;
        Ok(Judgement::of(&policy, cloister, authority))
    }

    /// The broken files, and how often they were read.
    fn settings(&self) -> (Vec<Broken>, Reloads) {
        let live = self.live();
        let changed = live.changed.map(|time| time.to_string());
        (live.broken.clone(), Reloads { good: live.good_reloads, bad: live.bad_reloads, changed })
    }

    fn cloister_status(&self, served: &Served, broken: &[Broken]) -> CloisterStatus {
        let registration = &served.kept.registration;
        let counters = &served.counters;
        let (bytes_up, bytes_down) = counters.bytes();
        let refusals = counters.refusals();
        let refused = |codes: &[&str]| {
            refusals.iter().filter(|(code, _)| codes.contains(code)).map(|(_, count)| count).sum()
        };
        let files = Config::files_for(&self.paths, Some(&registration.owner()));
        CloisterStatus {
            cloister: registration.cloister.clone(),
            project: registration.project.clone(),
            network: registration.network,
            tunnels: served.client.open_tunnels(),
            max_tunnels: served.config.proxy.max_tunnels as usize,
            connections: counters.connections(),
            max_connections: served.max_connections(),
            allowed: counters.allowed(),
            denied: counters.denied(),
            pending: served.waiting(),
            rate_limited: refused(&TOO_FAST),
            too_many: refused(&TOO_MANY),
            bytes_up,
            bytes_down,
            way_out: way_out(&served.config),
            is_stale: broken.iter().any(|broken| files.contains(&broken.path)),
            unguarded: served.unguarded.as_deref().map(|reason| Untrusted(reason).to_string()),
            last_denial: counters.last_denial().map(|denial| LastDenial {
                host: denial.authority.as_ref().map(|authority| authority.host().to_string()),
                port: denial.authority.as_ref().map(Authority::port),
                reason: denial.reason.to_owned(),
                ago_s: denial.at.elapsed().as_secs(),
            }),
        }
    }
}

impl Served {
    /// How many connections there may be.
    pub(super) fn max_connections(&self) -> usize {
        let max_tunnels = self.config.proxy.max_tunnels as usize;
        Limits { max_tunnels, ..Limits::default() }.max_connections()
    }
}

impl Broken {
    fn told(&self) -> SettingsProblem {
        let ago = Timestamp::now().duration_since(self.since);
        SettingsProblem {
            path: Untrusted(&self.path.to_string_lossy()).to_string(),
            line: self.problems.iter().find_map(|problem| problem.line),
            problems: self.problems.iter().map(ToString::to_string).collect(),
            since: self.since.to_string(),
            since_s: u64::try_from(ago.as_secs()).unwrap_or_default(),
        }
    }
}

/// The way out without a secret.
fn way_out(config: &Config) -> String {
    match &config.proxy.upstream {
        None => "direct".to_owned(),
        Some(upstream) => {
            let scheme = match upstream.scheme {
                UpstreamScheme::Http => "http",
                UpstreamScheme::Https => "https",
            };
            format!("{scheme}://{}", upstream.authority)
        }
    }
}

fn totals(cloisters: &[CloisterStatus]) -> Totals {
    cloisters.iter().fold(Totals::default(), |sum, one| Totals {
        tunnels: sum.tunnels + one.tunnels,
        connections: sum.connections + one.connections,
        allowed: sum.allowed + one.allowed,
        denied: sum.denied + one.denied,
        bytes_up: sum.bytes_up + one.bytes_up,
        bytes_down: sum.bytes_down + one.bytes_down,
    })
}

/// What the system names as its name servers; for people, who look whether it is the right network.
fn name_servers() -> Vec<String> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.map(|server| Untrusted(server.trim()).to_string()).take(8).collect()
}

/// What this process uses, as far as the system tells.
pub(super) fn process() -> ProcessStatus {
    let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    ProcessStatus {
        // The one that lists them is gone by now.
        descriptors: (descriptors as u64).saturating_sub(1),
        max_descriptors: getrlimit(Resource::Nofile).current,
        resident_bytes: resident_bytes(Path::new("/proc/self/status")),
    }
}

fn resident_bytes(status: &Path) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let process = process();
        assert!(process.descriptors >= 3 && process.resident_bytes > 1 << 20, "{process:?}");
    }
}
