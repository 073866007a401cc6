//! Memory: of an empty guardian, of idle tunnels, and while a lot is carried.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::load::{Peer, Work, ping};
use super::peers::Stage;
use super::process::Process;
use super::table::{Goal, print_row, print_title};

/// Twice as many descriptors are what a process may have here.
pub(crate) const IDLE_TUNNELS: usize = 9500;
/// Among how many sandboxes they are shared.
const SANDBOXES: usize = 10;
const HOLD: Duration = Duration::from_mins(1);
/// How long memory is given back after tunnels have ended, and how long a guardian has to come to rest.
const REST: Duration = Duration::from_secs(2);
const SAMPLE: Duration = Duration::from_millis(100);

/// Carries 24 downloads at once and 10 GB in one, then holds idle tunnels for a minute.
pub(crate) async fn run(stage: &mut Stage) {
    let peer = stage.guardian("soak", 1).await.remove(0);
    for (what, tunnels, bytes) in
        [("24 downloads of 1 GB", 24, 1_000_000_000), ("one download of 10 GB", 1, 10_000_000_000)]
    {
        let watch = Watch::start(&peer);
        let start = Instant::now();
        peer.measure(&Work::Download { tunnels, bytes }, tunnels).await;
        let resident = watch.stop().await;
        println!(
            "{what}: {:.1} s; resident KiB at the start {}, at most {}, at the end {}",
            start.elapsed().as_secs_f64(),
            resident[0],
            resident.iter().copied().fold(0.0, f64::max),
            resident[resident.len() - 1],
        );
    }
    print_title();
    idle(stage, IDLE_TUNNELS, HOLD).await;
}

/// Holds idle tunnels, and says what they take in memory; all must still carry bytes at the end.
pub(crate) async fn idle(stage: &mut Stage, count: usize, hold: Duration) {
    let peers = stage.guardian("idle", SANDBOXES).await;
    let process = peers[0].process.unwrap();
    sleep(REST).await;
    let empty = process.resident_kib();
    print_row("empty guardian, MiB", vec![empty / 1024.0], Goal::AtMost(12.0));
    let mut openers = JoinSet::new();
    for (number, peer) in peers.into_iter().enumerate() {
        let share = (number..count).step_by(SANDBOXES).count();
        openers.spawn(async move {
            let mut open = Vec::new();
            for _ in 0..share {
                open.push(peer.echo().await);
            }
            open
        });
    }
    let mut open = openers.join_all().await.into_iter().flatten().collect::<Vec<_>>();
    sleep(hold).await;
    let per_tunnel = (process.resident_kib() - empty) / count as f64;
    for stream in &mut open {
        ping(stream).await;
    }
    print_row(&format!("KiB for each of {count} idle tunnels"), vec![per_tunnel], Goal::AtMost(4.0));
    println!("all of them still carried bytes after {} s", hold.as_secs());
    drop(open);
    sleep(REST).await;
    print_row("MiB after they have ended", vec![process.resident_kib() / 1024.0], Goal::None);
}

/// Samples what lies in memory while something runs.
struct Watch {
    is_over: Arc<AtomicBool>,
    samples: tokio::task::JoinHandle<Vec<f64>>,
}

impl Watch {
    fn start(peer: &Peer) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let samples = tokio::spawn(sample(peer.process.unwrap(), Arc::clone(&is_over)));
        Self { is_over, samples }
    }

    async fn stop(self) -> Vec<f64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.samples.await.unwrap()
    }
}

async fn sample(process: Process, is_over: Arc<AtomicBool>) -> Vec<f64> {
    let mut samples = vec![process.resident_kib()];
    while !is_over.load(Ordering::Relaxed) {
        sleep(SAMPLE).await;
        samples.push(process.resident_kib());
    }
    samples
}
