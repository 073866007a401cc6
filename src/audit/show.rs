//! One entry for human eyes: one line, with everything that may come from a sandbox escaped (A15).

use std::fmt::{self, Display, Formatter};

use super::Entry;
use crate::text::Quoted;

impl Display for Entry {
    /// Writes time, event, cloister and destination, then what else is known as `name=value`.
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.0} {}", self.time, self.event)?;
        match (&self.cloister, &self.project) {
            (Some(cloister), _) => write!(formatter, " {cloister}")?,
            (None, Some(project)) => write!(formatter, " {project}")?,
            (None, None) => {}
        }
        match (&self.host, self.port) {
            (Some(host), Some(port)) if host.contains(':') => {
                write!(formatter, " {}", Quoted(&format!("[{host}]:{port}")))?;
            }
            (Some(host), Some(port)) => write!(formatter, " {}", Quoted(&format!("{host}:{port}")))?,
            (Some(host), None) => write!(formatter, " {}", Quoted(host))?,
            (None, Some(port)) => write!(formatter, " port={port}")?,
            (None, None) => {}
        }
        if let Some(addresses) = &self.addresses {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            write!(formatter, " addresses={}", addresses.join(","))?;
        }
        for (name, text) in self.texts() {
            if let Some(text) = text {
                write!(formatter, " {name}={}", Quoted(text))?;
            }
        }
        for (name, number) in [
            ("up", self.bytes_up),
            ("down", self.bytes_down),
            ("ms", self.duration_ms),
            ("repeated", self.repeated),
        ] {
            if let Some(number) = number {
                write!(formatter, " {name}={number}")?;
            }
        }
        for (name, time) in [("from", self.from), ("to", self.to)] {
            if let Some(time) = time {
                write!(formatter, " {name}={time:.0}")?;
            }
        }
        if let Some(head) = self.removed {
            write!(formatter, " up-to={}", head.seq)?;
        }
        if let Some(code) = self.exit_code {
            write!(formatter, " exit={code}")?;
        }
        if let Some(argv) = &self.argv {
            formatter.write_str(" --")?;
            argv.iter().try_for_each(|argument| write!(formatter, " {}", Quoted(argument)))?;
        }
        Ok(())
    }
}

impl Entry {
    fn texts(&self) -> [(&'static str, Option<&str>); 8] {
        [
            ("branch", self.branch.as_ref().map(crate::name::BranchName::as_str)),
            ("reason", self.reason.as_deref()),
            ("rule", self.rule.as_deref()),
            ("origin", self.origin.as_deref()),
            ("scope", self.scope.as_deref()),
            ("pattern", self.pattern.as_deref()),
            ("who", self.who.as_deref()),
            ("detail", self.detail.as_deref()),
        ]
    }
}
