//! The variables inside a sandbox: few, named, and none by accident.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::config::{Config, Network};
use crate::init::{Boot, Relay};
use crate::name::ProjectName;
use crate::sandbox::{HOME, SOCKETS, Spec, Tools};

/// The guardian's name inside a sandbox, where `/etc/hosts` maps it to the relay.
const GUARDIAN: &str = "cloister-guardian";
/// The proxy's port inside a sandbox.
pub(super) const PROXY_PORT: u16 = 3128;
/// Where polite requests are made inside a sandbox.
const REQUEST_PORT: u16 = 9998;
/// What describes the user's terminal and language; passed on when set.
const FROM_HOST: [&str; 7] = ["TERM", "COLORTERM", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ"];

/// The settings of a sandbox's first process: what every session gets, and the ways to the guardian.
pub(super) fn boot(spec: &Spec, project: &ProjectName, token: &str, tools: &Tools) -> Boot {
    let identity =
        [("CLOISTER", "1"), ("CLOISTER_NAME", spec.name.as_str()), ("CLOISTER_PROJECT", project.as_str())];
    let mut environment: BTreeMap<String, String> = [
        ("HOME", HOME),
        ("USER", &spec.user.name),
        ("LOGNAME", &spec.user.name),
        ("PATH", &tools.search_path()),
        ("TMPDIR", "/tmp"),
    ]
    .into_iter()
    .chain(identity)
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    environment.extend(tools.variables.clone());
    let mut relays = Vec::new();
    // In the tier `none` there is no way out, and so nothing that speaks of one.
    if spec.network != Network::None {
        environment.extend(guardian(token));
        relays.push(Relay { port: PROXY_PORT, socket: format!("{SOCKETS}/proxy.sock") });
        relays.push(Relay { port: REQUEST_PORT, socket: format!("{SOCKETS}/request.sock") });
    }
    Boot { max_processes: None, environment, relays, anchors: Vec::new() }
}

/// What leads to the guardian.
fn guardian(token: &str) -> impl Iterator<Item = (String, String)> {
    [("CLOISTER_TOKEN", token), ("CLOISTER_GUARDIAN_HOST", GUARDIAN), ("NODE_USE_ENV_PROXY", "1")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .chain([("CLOISTER_REQUEST_PORT".to_owned(), REQUEST_PORT.to_string())])
        .chain(proxy(token))
}

fn proxy(token: &str) -> impl Iterator<Item = (String, String)> {
    let way = format!("http://cloister:{token}@{GUARDIAN}:{PROXY_PORT}");
    let around = format!("{GUARDIAN},localhost,127.0.0.1,::1");
    let ways = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].map(|name| (name, way.clone()));
    ways.into_iter()
        .chain([("NO_PROXY", around)])
        .flat_map(|(name, value)| [(name.to_owned(), value.clone()), (name.to_ascii_lowercase(), value)])
}

/// The variables of one session: the user's terminal and language, and what the settings name.
pub(super) fn session(config: &Config, host: impl Fn(&str) -> Option<OsString>) -> BTreeMap<String, String> {
    let from_host = |name: &str| host(name)?.into_string().ok();
    let described = FROM_HOST.iter().filter_map(|name| Some(((*name).to_owned(), from_host(name)?)));
    let mut variables: BTreeMap<String, String> = described.collect();
    variables.insert("SHELL".to_owned(), config.shell.display().to_string());
    let configured = config.env.resolve(from_host);
    variables
        .extend(configured.iter().map(|(name, value)| (name.as_str().to_owned(), value.expose().to_owned())));
    variables
}
