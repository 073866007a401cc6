//! Raw values to domain values: every value goes through its one parser, and every problem is reported.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::path::PathBuf;

use super::keys::{self, Kind};
use super::problem::Report;
use super::proxy::{self, duration};
use super::raw::{Marked, Raw, RawApprovals, RawAudit, RawEnv, RawFiles, RawLimits, RawMount, RawProxy};
use super::sandbox::environment::{EnvName, EnvValue};
use super::sandbox::{self, Mount, MountMode, Network};
use super::{Backend, Config, Source};
use crate::policy::{AddressClass, DomainName, DomainPattern, Effect, OriginKind, Pattern, Rule, Unlisted};

/// Adds one file's values to the configuration: lists add up, scalars and entries of maps replace.
pub(super) fn apply(raw: Raw, source: &Source, config: &mut Config, report: &mut Report<'_>) {
    let mut layer = Layer { source, config, report };
    if let Some(backend) = raw.backend {
        layer.backend(&backend);
    }
    if let Some(network) = raw.network {
        layer.network(&network);
    }
    if let Some(shell) = raw.shell {
        layer.shell(&shell);
    }
    layer.proxy(raw.proxy);
    layer.approvals(raw.approvals);
    layer.files(raw.files);
    layer.host_paths(raw.refs, |config| &mut config.refs);
    raw.mounts.into_iter().for_each(|mount| layer.mount(mount));
    layer.env(raw.env);
    layer.limits(raw.limits);
    layer.tools(raw.tools);
    layer.audit(raw.audit);
}

struct Layer<'a, 'p> {
    source: &'a Source,
    config: &'a mut Config,
    report: &'a mut Report<'p>,
}

impl Layer<'_, '_> {
    fn backend(&mut self, written: &Marked<String>) {
        match written.value.as_str() {
            "auto" => self.config.backend = Backend::Auto,
            "docker" => self.config.backend = Backend::Docker,
            "bubblewrap" => self.config.backend = Backend::Bubblewrap,
            _ => self.refuse_choice(written),
        }
    }

    fn network(&mut self, written: &Marked<String>) {
        match written.value.as_str() {
            "none" => self.config.network = Network::None,
            "guarded" => self.config.network = Network::Guarded,
            "inet" => self.config.network = Network::Inet,
            "full" => self.config.network = Network::Full,
            _ => self.refuse_choice(written),
        }
    }

    fn files(&mut self, raw: RawFiles) {
        for written in raw.protect {
            match sandbox::project_path(&written.value) {
                Ok(path) => self.config.files.protect.push(path),
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
        for written in raw.mask {
            let pattern = written.value.strip_prefix('!').unwrap_or(&written.value);
            match sandbox::project_path(pattern) {
                Ok(_) => self.config.files.mask.push(written.value),
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
    }

    fn host_paths(&mut self, paths: Vec<Marked<String>>, list: impl Fn(&mut Config) -> &mut Vec<PathBuf>) {
        for written in paths {
            match sandbox::host_path(&written.value, &self.source.home) {
                Ok(path) => list(self.config).push(path),
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
    }

    fn mount(&mut self, raw: RawMount) {
        let RawMount { place, source, target, mode } = raw;
        let (Some(source), Some(target)) = (source, target) else {
            let what = "needs both `source` and `target`";
            self.report.add(
                place.line,
                &place.key,
                what,
                Some("give both, as in `{source: ~/data, target: /data}`".into()),
            );
            return;
        };
        let mode = match mode.as_ref().map(|mode| mode.value.as_str()) {
            None | Some("ro") => MountMode::ReadOnly,
            Some("rw") => MountMode::ReadWrite,
            Some(other) => {
                let what = format!("`{other}` is no mode of a mount");
                return self.refuse(mode.as_ref().unwrap_or(&source), what, Some("write `ro` or `rw`"));
            }
        };
        let found = sandbox::host_path(&source.value, &self.source.home);
        let seen = sandbox::inside_path(&target.value);
        match (found, seen) {
            (Ok(source), Ok(target)) => self.config.mounts.push(Mount { source, target, mode }),
            (found, seen) => {
                if let Err(error) = found {
                    self.refuse(&source, error.to_string(), None);
                }
                if let Err(error) = seen {
                    self.refuse(&target, error.to_string(), None);
                }
            }
        }
    }

    fn limits(&mut self, raw: RawLimits) {
        let RawLimits { memory, cpus, pids } = raw;
        self.set(memory, sandbox::memory, |config| &mut config.limits.memory_bytes);
        self.set(cpus, sandbox::cpus, |config| &mut config.limits.cpus_milli);
        self.set(pids, sandbox::pids, |config| &mut config.limits.pids);
    }

    fn tools(&mut self, tools: Vec<Marked<String>>) {
        for written in tools {
            match sandbox::store_path(&written.value) {
                Ok(path) => self.config.tools.push(path),
                Err(error) => self.refuse(&written, format!("`{}` {error}", written.value), None),
            }
        }
    }

    fn shell(&mut self, written: &Marked<String>) {
        let path = &written.value;
        let is_usable = path.starts_with('/') && !path.ends_with('/') && !path.contains(char::is_control);
        if is_usable {
            self.config.shell = PathBuf::from(path);
        } else {
            let what = format!("`{path}` is no absolute path of a program");
            self.refuse(written, what, Some("write it in full, such as `/bin/bash`"));
        }
    }

    fn proxy(&mut self, raw: RawProxy) {
        self.rules(&raw.allow, Effect::Allow);
        self.rules(&raw.deny, Effect::Deny);
        if let Some(unlisted) = raw.unlisted {
            match unlisted.value.as_str() {
                "ask" => self.config.proxy.unlisted = Unlisted::Ask,
                "reject" => self.config.proxy.unlisted = Unlisted::Reject,
                _ => self.refuse_choice(&unlisted),
            }
        }
        self.pins(&raw.hosts);
        for written in raw.private {
            match DomainPattern::parse(&written.value) {
                Ok(pattern) => self.config.proxy.private.push(pattern),
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
        let count = |min, max| move |text: &str| proxy::count(text, min, max);
        self.set(raw.rate_limit.per_minute, count(1, 6_000_000), |config| {
            &mut config.proxy.rate_limit.per_minute
        });
        self.set(raw.rate_limit.burst, count(1, 1_000_000), |config| &mut config.proxy.rate_limit.burst);
        self.set(raw.max_tunnels, count(1, 65_536), |config| &mut config.proxy.max_tunnels);
        self.set(raw.idle_timeout, duration::parse, |config| &mut config.proxy.idle_timeout);
        self.set(raw.max_duration, duration::parse, |config| &mut config.proxy.max_duration);
        self.set(raw.approval_timeout, proxy::approval_timeout, |config| &mut config.proxy.approval_timeout);
        if let Some(written) = raw.upstream {
            match proxy::upstream(&written.value) {
                Ok(upstream) => self.config.proxy.upstream = Some(upstream),
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
    }

    fn approvals(&mut self, raw: RawApprovals) {
        if let Some(written) = raw.notify {
            self.config.approvals.notify = written.value;
        }
        if let Some(written) = raw.bell {
            self.config.approvals.bell = written.value;
        }
        // A command is one value: a later file's replaces it whole.
        if let Some(command) = raw.notify_command {
            let words = command.iter().enumerate().map(|(at, written)| match at {
                0 => (written, proxy::program(&written.value, &self.source.home)),
                _ => (written, proxy::argument(&written.value)),
            });
            let mut argv = Vec::with_capacity(command.len());
            for (written, word) in words {
                match word {
                    Ok(word) => argv.push(word),
                    Err(error) => self.refuse(written, format!("`{}` {error}", written.value), None),
                }
            }
            self.config.approvals.notify_command = argv;
        }
    }

    /// Sets a field to what was written, or reports why it can't be read.
    fn set<T, E: Display>(
        &mut self,
        written: Option<Marked<String>>,
        parse: impl Fn(&str) -> Result<T, E>,
        field: impl Fn(&mut Config) -> &mut T,
    ) {
        let Some(written) = written else { return };
        match parse(&written.value) {
            Ok(value) => *field(self.config) = value,
            Err(error) => self.refuse(&written, format!("`{}` {error}", written.value), None),
        }
    }

    /// There is one log for all projects, so only the file for all of them has a say.
    fn audit(&mut self, raw: RawAudit) {
        if self.source.kind != OriginKind::Global {
            let RawAudit { per_cloister, max_size, max_files } = raw;
            let written = [per_cloister.map(|written| (written.line, written.key))];
            let texts =
                [max_size, max_files].map(|written| written.map(|written| (written.line, written.key)));
            for (line, key) in written.into_iter().chain(texts).flatten() {
                let repair = Some("write it into `config.yaml`".to_owned());
                self.report.add(line, &key, "is not a project's: there is one audit log for all", repair);
            }
            return;
        }
        if let Some(written) = raw.per_cloister {
            self.config.audit.per_cloister = written.value;
        }
        self.set(raw.max_size, proxy::file_size, |config| &mut config.audit.max_bytes);
        self.set(raw.max_files, |text| proxy::count(text, 1, 100_000), |config| &mut config.audit.max_files);
    }

    fn rules(&mut self, patterns: &[Marked<String>], effect: Effect) {
        let rule = match effect {
            Effect::Allow => Rule::allow,
            Effect::Deny => Rule::deny,
        };
        for written in patterns {
            match Pattern::parse_for(effect, &written.value) {
                Ok(pattern) => self.config.proxy.rules.push(rule(pattern, self.source.origin(written.line))),
                Err(error) => self.refuse(written, error.to_string(), None),
            }
        }
    }

    fn pins(&mut self, hosts: &[(Marked<String>, Vec<Marked<String>>)]) {
        let mut pinned = BTreeSet::new();
        for (written, addresses) in hosts {
            let name = match DomainName::parse(&written.value) {
                Ok(name) => name,
                Err(error) => {
                    self.refuse(written, error.to_string(), None);
                    continue;
                }
            };
            if !pinned.insert(name.clone()) {
                self.refuse(written, format!("pins `{name}` a second time"), Some("keep one of the two"));
                continue;
            }
            if addresses.is_empty() {
                self.refuse(written, "pins the name to no address", Some("list one, or remove the name"));
                continue;
            }
            let addresses = addresses.iter().filter_map(|address| self.address(address)).collect();
            self.config.proxy.pins.insert(name, addresses);
        }
    }

    /// Reads an address that a name may be pinned to.
    fn address(&mut self, written: &Marked<String>) -> Option<IpAddr> {
        let Ok(address) = written.value.parse::<IpAddr>() else {
            let what = format!("`{}` is no IP address", written.value);
            self.refuse(written, what, Some("write one such as `10.1.2.3` or `2001:db8::1`, without a port"));
            return None;
        };
        let class = AddressClass::of(address);
        if class.is_never_allowed() {
            let what = format!("`{address}` is a {class} address, which no sandbox may ever reach");
            self.refuse(written, what, Some("remove it"));
            return None;
        }
        Some(address.to_canonical())
    }

    fn env(&mut self, raw: RawEnv) {
        for written in raw.pass {
            match EnvName::parse_to_pass(&written.value) {
                Ok(name) => drop(self.config.env.pass.insert(name)),
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
        for (written, value) in raw.set {
            match EnvName::parse_to_set(&written.value) {
                Ok(name) => match EnvValue::parse(&value.value) {
                    Some(value) => drop(self.config.env.set.insert(name, value)),
                    None => self.refuse(&value, "holds a NUL, which no variable can hold", Some("remove it")),
                },
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
    }

    fn refuse_choice(&mut self, written: &Marked<String>) {
        let kind = keys::key(&written.key).map(|key| key.kind);
        let words = match kind {
            Some(Kind::Choice(words)) => words,
            _ => &[],
        };
        let repair = match keys::nearest(&written.value, words) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("write one of {}", keys::listed(words)),
        };
        self.refuse(written, format!("`{}` is not one of the choices", written.value), Some(&repair));
    }

    fn refuse(&mut self, written: &Marked<String>, what: impl Into<String>, repair: Option<&str>) {
        self.report.add(written.line, &written.key, what, repair.map(str::to_owned));
    }
}
