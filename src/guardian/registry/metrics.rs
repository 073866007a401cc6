//! The measurements as text for Prometheus (`OpenMetrics` 1.0).
//!
//! Labels are names of cloisters, and words of this program: nothing that a sandbox chooses. A cloister that is
//! revoked is gone from the next answer. To read it: `cloister guardian status --metrics`, or, in the runtime
//! directory, with the key in no argument list (invariant 8):
//! `printf 'Authorization: Bearer %s' "$(cat control.key)" | curl --unix-socket control.sock -H @- http://guardian/metrics`.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry as Encoder;

use super::counters::Distribution;
use super::status::process;
use super::{Registry, Served};
use crate::guardian::notify::Counts;

/// The type of the answer.
pub(in crate::guardian) const CONTENT_TYPE: &str =
    "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Measurements of one kind.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    samples: Samples,
}

#[derive(Debug)]
enum Samples {
    Counters(Vec<(Labels, u64)>),
    Gauges(Vec<(Labels, f64)>),
    Histograms(Vec<(Labels, Distribution)>),
}

/// All that is measured, as it was at one time.
#[derive(Debug)]
struct Snapshot(Vec<Family>);

impl Registry {
    /// All measurements as text.
    ///
    /// # Errors
    /// Never in practice: text is always written to memory.
    pub(in crate::guardian) fn metrics(&self) -> Result<String, fmt::Error> {
        let families = self.own_families().into_iter().chain(self.cloister_families()).collect();
        let mut encoder = Encoder::with_prefix("cloister");
        encoder.register_collector(Box::new(Snapshot(families)));
        let mut text = String::new();
        text::encode(&mut text, &encoder)?;
        Ok(text)
    }

    /// What is measured of the guardian itself.
    fn own_families(&self) -> Vec<Family> {
        let process = process();
        let (good, bad, broken) = {
            let live = self.live();
            (live.good_reloads, live.bad_reloads, live.broken.len())
        };
        let lag = self.log.lag().unwrap_or_default();
        let records = self.log.head().map_or(0, |head| head.seq);
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        let reloads = vec![(result("ok"), good), (result("failed"), bad)];
        let steps = self.latencies.read().into_iter();
        let steps = steps.map(|(step, read)| (vec![("step", step.to_owned())], read)).collect();
        vec![
            Family::gauges("build_info", "The running version", vec![(version, 1.0)]),
            Family::gauge(
                "uptime_seconds",
                "Since the guardian started",
                self.started.elapsed().as_secs_f64(),
            ),
            Family::gauge(
                "open_descriptors",
                "Open descriptors of the guardian",
                number(process.descriptors),
            ),
            Family::gauge(
                "max_descriptors",
                "How many descriptors may be open",
                process.max_descriptors.map_or(f64::INFINITY, number),
            ),
            Family::gauge("resident_memory_bytes", "Resident memory", number(process.resident_bytes)),
            Family::gauge(
                "draining_tunnels",
                "Tunnels that the guardian before this one still carries",
                number(self.draining() as u64),
            ),
            Family::gauge("audit_records", "Number of the last record in the audit log", number(records)),
            Family::counter(
                "audit_failed_records",
                "Records that could not be written; nothing passes without one",
                self.trouble.failed(),
            ),
            Family::gauge("audit_unsynced_records", "Records not known to be on disk", number(lag.records)),
            Family::gauge(
                "audit_sync_age_seconds",
                "How long the oldest of them waits for the disk",
                lag.age.as_secs_f64(),
            ),
            Family::counters("settings_reloads", "How often the settings were read", reloads),
            Family::gauge(
                "settings_broken_files",
                "Files of settings that can't be used",
                number(broken as u64),
            ),
            Family::counters(
                "calls",
                "How often somebody was called because a request waited, and by what",
                calls(&self.approvals.called()),
            ),
            Family {
                name: "step_seconds",
                help: "How long the steps of requests take, those apart that a human was asked about: dns, decision (parsed to recorded permit), \
                       connect, open (parsed to connected), refusal (parsed to refused)",
                samples: Samples::Histograms(steps),
            },
        ]
    }

    /// What is measured of each cloister.
    fn cloister_families(&self) -> Vec<Family> {
        let served = self.served();
        let each = |value: fn(&Served) -> f64| -> Vec<(Labels, f64)> {
            served.values().map(|served| (cloister(served), value(served))).collect()
        };
        let traffic = |direction: &'static str, served: &Served| {
            let mut labels = cloister(served);
            labels.push(("direction", direction.to_owned()));
            let traffic = served.counters.traffic();
            let bytes = if direction == "up" { &traffic.up } else { &traffic.down };
            (labels, bytes.load(Ordering::Relaxed))
        };
        let bytes =
            served.values().flat_map(|served| [traffic("up", served), traffic("down", served)]).collect();
        vec![
            Family::counters(
                "requests",
                "Requests by decision, refused ones by reason",
                served.values().flat_map(requests).collect(),
            ),
            Family::counters(
                "ends",
                "Ends of allowed requests and tunnels, by what was out of order",
                served.values().flat_map(ends).collect(),
            ),
            Family::gauges(
                "open_tunnels",
                "Open tunnels and requests",
                each(|one| number(one.client.open_tunnels() as u64)),
            ),
            Family::gauges(
                "max_tunnels",
                "How many may be open",
                each(|one| f64::from(one.config.proxy.max_tunnels)),
            ),
            Family::gauges(
                "pending_approvals",
                "Requests that wait for a human",
                each(|one| number(one.waiting() as u64)),
            ),
            Family::gauges(
                "open_connections",
                "Connections of clients, each in a slot",
                each(|one| number(one.counters.connections() as u64)),
            ),
            Family::gauges(
                "max_connections",
                "How many slots for connections there are; who finds none is refused, not queued",
                each(|one| number(one.max_connections() as u64)),
            ),
            Family::counters("bytes", "Bytes that were carried, from (up) and to (down) sandboxes", bytes),
        ]
    }
}

fn cloister(served: &Served) -> Labels {
    vec![("cloister", served.kept.registration.cloister.to_string())]
}

fn calls(counts: &Counts) -> Vec<(Labels, u64)> {
    let labels = |by: &str, result: &str| vec![("by", by.to_owned()), ("result", result.to_owned())];
    vec![
        (labels("desktop", "ok"), counts.desktop.done),
        (labels("desktop", "failed"), counts.desktop.failed),
        (labels("command", "ok"), counts.command.done),
        (labels("command", "failed"), counts.command.failed),
        (labels("none", "held_back"), counts.held_back),
    ]
}

fn result(word: &str) -> Labels {
    vec![("result", word.to_owned())]
}

fn requests(served: &Served) -> Vec<(Labels, u64)> {
    let labels = |decision: &str, reason: &str| {
        let mut labels = cloister(served);
        labels.extend([("decision", decision.to_owned()), ("reason", reason.to_owned())]);
        labels
    };
    let refused =
        served.counters.refusals().into_iter().map(|(reason, count)| (labels("deny", reason), count));
    std::iter::once((labels("allow", "none"), served.counters.allowed())).chain(refused).collect()
}

fn ends(served: &Served) -> Vec<(Labels, u64)> {
    let labels = |reason: &str| {
        let mut labels = cloister(served);
        labels.push(("reason", reason.to_owned()));
        labels
    };
    served.counters.ends().into_iter().map(|(reason, count)| (labels(reason), count)).collect()
}

/// A count as Prometheus has it.
#[expect(clippy::cast_precision_loss, reason = "no count comes near 2^53")]
const fn number(count: u64) -> f64 {
    count as f64
}

impl Family {
    fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::counters(name, help, vec![(Vec::new(), value)])
    }

    fn counters(name: &'static str, help: &'static str, samples: Vec<(Labels, u64)>) -> Self {
        Self { name, help, samples: Samples::Counters(samples) }
    }

    fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self::gauges(name, help, vec![(Vec::new(), value)])
    }

    fn gauges(name: &'static str, help: &'static str, samples: Vec<(Labels, f64)>) -> Self {
        Self { name, help, samples: Samples::Gauges(samples) }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut encoder = encoder.encode_descriptor(self.name, self.help, None, self.samples.kind())?;
        match &self.samples {
            Samples::Counters(samples) => encode_each(&mut encoder, samples, |encoder, value| {
                encoder.encode_counter::<NoLabelSet, u64, f64>(value, None)
            }),
            Samples::Gauges(samples) => encode_each(&mut encoder, samples, |encoder, value| {
                let value = *value;
                encoder.encode_gauge(&value)
            }),
            Samples::Histograms(samples) => encode_each(&mut encoder, samples, |encoder, read| {
                encoder.encode_histogram::<NoLabelSet>(read.seconds, read.count, &read.buckets, None)
            }),
        }
    }
}

impl Samples {
    const fn kind(&self) -> MetricType {
        match self {
            Self::Counters(_) => MetricType::Counter,
            Self::Gauges(_) => MetricType::Gauge,
            Self::Histograms(_) => MetricType::Histogram,
        }
    }
}

fn encode_each<T>(
    encoder: &mut MetricEncoder<'_>,
    samples: &[(Labels, T)],
    encode: impl Fn(&mut MetricEncoder<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    samples.iter().try_for_each(|(labels, value)| {
        if labels.is_empty() {
            return encode(encoder, value);
        }
        encode(&mut encoder.encode_family(labels)?, value)
    })
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}
