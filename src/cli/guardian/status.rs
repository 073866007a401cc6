//! `cloister guardian status`: how the guardian is, in eighty columns.

use std::time::Duration;

use super::super::error::CommandError;
use super::super::output::{human_duration, in_columns, line};
use super::count;
use crate::guardian::client::{CloisterStatus, LastDenial, Status};
use crate::text::Quoted;

/// How many digits of a hash are shown: the whole head is for `cloister audit head`.
const SHOWN_DIGITS: usize = 12;
/// How many columns the other cells leave for a name.
const NAME_COLUMNS: usize = 19;

pub(super) fn show(status: &Status) -> Result<(), CommandError> {
    let uptime = human_duration(Duration::from_secs(status.uptime_s));
    line(&format!("guardian   running, version {}, pid {}, up {uptime}", status.version, status.pid))?;
    line(&format!("audit log  {}", audit(status)))?;
    show_settings(status)?;
    line(&format!("way out    {}; names from {}", ways(status), servers(status)))?;
    line(&format!("approvals  {}", approvals(status)))?;
    status.foreign.iter().try_for_each(|problem| line(&format!("unused     {problem}")))?;
    let process = &status.process;
    let limit = process.max_descriptors.map_or_else(String::new, |limit| format!(" of {limit}"));
    line(&format!(
        "process    {} of memory, {}{limit} descriptors",
        bytes(process.resident_bytes),
        process.descriptors
    ))?;
    if status.draining > 0 {
        line(&format!("draining   {} of the guardian before this one", count(status.draining, "tunnel")))?;
    }
    if status.cloisters.is_empty() {
        return line("cloisters  none");
    }
    line("")?;
    cloisters(status).iter().try_for_each(|text| line(text))?;
    let unguarded = status.cloisters.iter().filter_map(|one| Some((one, one.unguarded.as_ref()?)));
    let unguarded: Vec<_> = unguarded.map(|(one, why)| format!("  {}: {why}", one.cloister)).collect();
    if !unguarded.is_empty() {
        line("")?;
        line("NO WAY OUT, for their guards are not watched (it is tried again every second)")?;
        unguarded.iter().try_for_each(|text| line(text))?;
    }
    let denied: Vec<_> = status
        .cloisters
        .iter()
        .filter_map(|one| Some((one, one.last_denial.as_ref()?)))
        .map(|(one, denial)| format!("  {}: {}", one.cloister, denied(denial)))
        .collect();
    if !denied.is_empty() {
        line("")?;
        line("last denials (`cloister why HOST` tells more)")?;
        denied.iter().try_for_each(|text| line(text))?;
    }
    Ok(())
}

/// What waits for a human, and where the page is on which they answer.
fn approvals(status: &Status) -> String {
    let waiting: usize = status.cloisters.iter().map(|one| one.pending).sum();
    let waiting = match waiting {
        0 => "nothing waits".to_owned(),
        1 => "1 request waits: `cloister approvals watch`".to_owned(),
        many => format!("{many} requests wait: `cloister approvals watch`"),
    };
    let page = status.page.as_ref().map_or("no page, for no port was free", String::as_str);
    format!("{waiting}; {page} (`cloister approvals open`)")
}

fn audit(status: &Status) -> String {
    if let Some(problem) = &status.audit_problem {
        return format!("BROKEN, nothing passes: {problem}");
    }
    let (seq, hash) = status.audit_head.split_once(':').unwrap_or((&status.audit_head, ""));
    let hash = &hash[..hash.floor_char_boundary(SHOWN_DIGITS)];
    let synced = match status.audit_unsynced {
        0 => "all on disk".to_owned(),
        unsynced => format!("{unsynced} not yet on disk"),
    };
    format!("{seq} records, ends at {seq}:{hash}…, {synced}")
}

fn show_settings(status: &Status) -> Result<(), CommandError> {
    let reloads = &status.reloads;
    if status.settings_problems.is_empty() {
        let read = match &reloads.changed {
            None => "as at the start".to_owned(),
            Some(time) => {
                format!("changed {}", time.split_once('.').map_or(time.as_str(), |(short, _)| short))
            }
        };
        return line(&format!("settings   good, {read}"));
    }
    line("settings   BROKEN; cloisters with a * keep the rules from before:")?;
    for broken in &status.settings_problems {
        let since = human_duration(Duration::from_secs(broken.since_s));
        broken.problems.iter().try_for_each(|problem| line(&format!("  {problem}")))?;
        line(&format!("    since {} ({since} ago)", broken.since))?;
    }
    Ok(())
}

/// Every way out that a cloister has.
fn ways(status: &Status) -> String {
    let mut ways: Vec<&str> = status.cloisters.iter().map(|one| one.way_out.as_str()).collect();
    ways.sort_unstable();
    ways.dedup();
    if ways.is_empty() { "nobody asks".to_owned() } else { ways.join(", ") }
}

fn servers(status: &Status) -> String {
    if status.name_servers.is_empty() { "nowhere".to_owned() } else { status.name_servers.join(", ") }
}

fn cloisters(status: &Status) -> Vec<String> {
    let mut rows: Vec<[String; 8]> = status.cloisters.iter().flat_map(rows).collect();
    if let [_, _, ..] = status.cloisters.as_slice() {
        let totals = &status.totals;
        rows.push([
            "(all)".to_owned(),
            String::new(),
            totals.tunnels.to_string(),
            totals.allowed.to_string(),
            totals.denied.to_string(),
            status.cloisters.iter().map(limited).sum::<u64>().to_string(),
            bytes(totals.bytes_up),
            bytes(totals.bytes_down),
        ]);
    }
    in_columns(["NAME", "NETWORK", "OPEN", "ALLOWED", "DENIED", "LIMITED", "UP", "DOWN"], &rows)
}

/// One row, or two for a long name: it stands alone then, whole, so that it can be copied.
fn rows(one: &CloisterStatus) -> Vec<[String; 8]> {
    let mut row = row(one);
    if row[0].chars().count() <= NAME_COLUMNS {
        return vec![row];
    }
    let mut alone = <[String; 8]>::default();
    alone[0] = std::mem::take(&mut row[0]);
    vec![alone, row]
}

fn row(one: &CloisterStatus) -> [String; 8] {
    let stale = if one.is_stale { "*" } else { "" };
    [
        format!("{}{stale}", one.cloister),
        one.network.as_str().to_owned(),
        one.tunnels.to_string(),
        one.allowed.to_string(),
        one.denied.to_string(),
        limited(one).to_string(),
        bytes(one.bytes_up),
        bytes(one.bytes_down),
    ]
}

/// What was refused because it was too much or too fast.
fn limited(one: &CloisterStatus) -> u64 {
    one.rate_limited + one.too_many
}

fn denied(denial: &LastDenial) -> String {
    let ago = human_duration(Duration::from_secs(denial.ago_s));
    match (&denial.host, denial.port) {
        (Some(host), Some(port)) => format!("{}:{port} ({}), {ago} ago", Quoted(host), denial.reason),
        _ => format!("{}, {ago} ago", denial.reason),
    }
}

/// A size in the largest unit that keeps it above one.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (1..UNITS.len()).rev().find(|unit| count >> (10 * unit) > 0).unwrap_or(0);
    let whole = count >> (10 * unit);
    if unit > 0 && whole < 10 {
        let tenths = ((count >> (10 * (unit - 1))) & 1023) * 10 / 1024;
        return format!("{whole}.{tenths} {}", UNITS[unit]);
    }
    format!("{whole} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guardian::client::{ProcessStatus, Reloads, Totals};

    /// A status with cloisters of these names, whose settings are broken.
    fn status(names: &[&str]) -> Status {
        let cloisters = names.iter().map(|name| {
            serde_json::from_value(serde_json::json!({
                "cloister": name, "project": name, "network": "guarded", "way_out": "direct", "is_stale": true,
                "tunnels": 1234, "max_tunnels": 512, "connections": 3, "max_connections": 1024,
                "allowed": 9_999_999, "denied": 999_999, "rate_limited": 999_990, "too_many": 9,
                "bytes_up": (1 << 30) - 1, "bytes_down": (1 << 20) - 1, "last_denial": null, "unguarded": null,
            }))
        });
        Status {
            pid: 1,
            version: String::new(),
            api: 1,
            uptime_s: 1,
            audit_head: String::new(),
            audit_problem: None,
            audit_waits: false,
            audit_unsynced: 0,
            draining: 0,
            settings_problems: Vec::new(),
            foreign: Vec::new(),
            page: None,
            reloads: Reloads { good: 0, bad: 0, changed: None },
            name_servers: Vec::new(),
            process: ProcessStatus { descriptors: 0, max_descriptors: None, resident_bytes: 0 },
            totals: Totals::default(),
            cloisters: cloisters.map(Result::unwrap).collect(),
        }
    }

    #[test]
    fn cloisters_have_a_place_in_eighty_columns() {
        let (usual, long) = ("a".repeat(18), "b".repeat(63));
        insta::assert_snapshot!(cloisters(&status(&[&usual, &long])).join("\n"));
        let long_alone = cloisters(&status(&[&long]));
        assert_eq!(long_alone[1], format!("{long}*"));
        for line in cloisters(&status(&[&usual, "demo", &long])).iter().chain(&long_alone) {
            assert!(line.len() <= 80, "{}: {line}", line.len());
        }
    }

    #[test]
    fn sizes_are_short() {
        let shown = [0, 1023, 1024, 1536, 10 << 10, (5 << 20) - 1, 3 << 40].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 KiB", "4.9 MiB", "3.0 TiB"]);
    }

    #[test]
    fn a1_a_host_that_was_denied_steers_no_terminal() {
        let denial = LastDenial {
            host: Some("evil\u{1b}[2J\u{202e} x".to_owned()),
            port: Some(443),
            reason: "not_allowed".to_owned(),
            ago_s: 65,
        };
        assert_eq!(
            denied(&denial),
            "\"evil\\\\u{1b}[2J\\\\u{202e} x\":443 (not_allowed), 1m 5s ago".replace("\\\\", "\\")
        );
    }
}
