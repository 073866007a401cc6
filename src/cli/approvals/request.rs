//! `cloister request HOST[:PORT]`, inside a sandbox: ask, wait, and say what came of it.

use std::process::ExitCode;

use super::super::error::CommandError;
use super::super::output::{Output, line};
use crate::init::{Allowed, Asker, ask};
use crate::process;
use crate::sandbox::SOCKETS;

pub(in crate::cli) fn run(target: &str, reason: Option<&str>, output: &Output) -> ExitCode {
    let token = process::environment("CLOISTER_TOKEN").and_then(|token| token.into_string().ok());
    let asker = Asker {
        is_inside: process::environment("CLOISTER").is_some(),
        token: token.as_deref(),
        socket: &format!("{SOCKETS}/request.sock"),
    };
    let result = ask(target, reason, asker).map_err(CommandError::from);
    match result.and_then(|allowed| line(&told(&allowed))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            error.code()
        }
    }
}

fn told(Allowed { authority, scope, pattern }: &Allowed) -> String {
    let rule = pattern.as_ref().map_or_else(|| authority.to_string(), String::clone);
    match scope.as_deref() {
        None => format!("{authority} is allowed already, by the rule {rule}"),
        Some("once") => format!("{authority} is allowed for one connection, to be made within a minute"),
        Some("session") => {
            format!("{authority} is allowed until this cloister is stopped, by the rule {rule}")
        }
        Some(scope) => format!("{authority} is allowed for good, by the rule {rule} (scope {scope})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Authority;

    #[test]
    fn every_scope_is_told() {
        let told = |scope: Option<&str>| {
            told(&Allowed {
                authority: Authority::parse("api.x.org:443").unwrap(),
                scope: scope.map(str::to_owned),
                pattern: Some("*.x.org:443".to_owned()),
            })
        };
        assert_eq!(told(None), "api.x.org:443 is allowed already, by the rule *.x.org:443");
        assert_eq!(
            told(Some("once")),
            "api.x.org:443 is allowed for one connection, to be made within a minute"
        );
        assert_eq!(
            told(Some("session")),
            "api.x.org:443 is allowed until this cloister is stopped, by the rule *.x.org:443"
        );
        assert_eq!(
            told(Some("project")),
            "api.x.org:443 is allowed for good, by the rule *.x.org:443 (scope project)"
        );
    }
}
