//! Happy eyeballs (RFC 8305): several addresses are tried, a little after one another; the first to answer wins.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::Patience;
use super::failure::Failures;

/// How long an attempt has before the next one begins beside it (RFC 8305, 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How many attempts run at the same time: they have the descriptors of the connection to the upstream and of its
/// passage, so an upstream that is silent at many addresses takes no more than was accounted for (H15).
const MAX_RUNNING: usize = 3;

/// Connects to the addresses in their order: the next one begins when one has failed, or has not answered for a
/// while and few others are under way. The first connection is given back with its address, and all other attempts
/// are dropped.
pub(super) async fn race<T, F>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
    patience: Patience,
) -> Result<(T, SocketAddr), Failures>
where
    F: Future<Output = io::Result<T>>,
{
    let end = Instant::now() + patience.whole;
    let mut waiting = addresses.into_iter();
    let (mut running, mut failures) = (Vec::new(), Failures::default());
    loop {
        let now = Instant::now();
        if now < end
            && running.len() < MAX_RUNNING
            && let Some(address) = waiting.next()
        {
            let (attempt, attempt_end) = (connect(address), end.min(now + patience.attempt));
            running.push(Box::pin(async move {
                let connected = timeout_at(attempt_end, attempt).await;
                (address, connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
            }));
        }
        if running.is_empty() {
            return Err(failures);
        }
        tokio::select! {
            biased;
            (address, connected) = first(&mut running) => match connected {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => failures.add(address, error),
            },
            () = sleep(ATTEMPT_DELAY), if waiting.len() > 0 && running.len() < MAX_RUNNING => {}
        }
    }
}

/// Waits for the first to end, and takes it out.
async fn first<F: Future>(running: &mut Vec<Pin<Box<F>>>) -> F::Output {
    poll_fn(|cx| {
        let ready =
            running.iter_mut().enumerate().find_map(|(index, attempt)| match attempt.as_mut().poll(cx) {
                Poll::Ready(output) => Some((index, output)),
                Poll::Pending => None,
            });
        match ready {
            Some((index, output)) => {
                // The others may be older: their order stays.
                drop(running.remove(index));
                Poll::Ready(output)
            }
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::pending;

    use super::super::failure::DialError;
    use super::*;

    const PATIENCE: Patience = Patience { attempt: Duration::from_secs(10), whole: Duration::from_secs(30) };

    /// What an address does, and after how many milliseconds.
    #[derive(Clone, Copy)]
    enum Does {
        Answer(u64),
        Fail(u64, io::ErrorKind),
        Nothing,
    }

    /// Runs a race on a scripted network, and gives its outcome, when each attempt began, and how long it took.
    async fn run(script: &[Does]) -> (Result<u8, String>, Vec<(u8, u128)>, u128) {
        let start = Instant::now();
        let begun = RefCell::new(Vec::new());
        let open = Cell::new(0_usize);
        let addresses =
            (0..script.len()).map(|index| SocketAddr::from(([192, 0, 2, u8::try_from(index).unwrap()], 1)));
        let connect = |address: SocketAddr| {
            let std::net::IpAddr::V4(ip) = address.ip() else { unreachable!() };
            let index = ip.octets()[3];
            begun.borrow_mut().push((index, start.elapsed().as_millis()));
            let does = script[usize::from(index)];
            let guard = Guard::new(&open);
            assert!(open.get() <= MAX_RUNNING, "{} are open", open.get());
            async move {
                let _guard = guard;
                match does {
                    Does::Answer(after) => {
                        sleep(Duration::from_millis(after)).await;
                        Ok(index)
                    }
                    Does::Fail(after, kind) => {
                        sleep(Duration::from_millis(after)).await;
                        Err(kind.into())
                    }
                    Does::Nothing => pending().await,
                }
            }
        };
        let outcome = race(addresses.collect(), connect, PATIENCE).await;
        assert_eq!(open.get(), 0, "a loser is left open");
        let outcome =
            outcome.map(|(index, _)| index).map_err(|failures| DialError::from(failures).sentence());
        (outcome, begun.into_inner(), start.elapsed().as_millis())
    }

    struct Guard<'a>(&'a Cell<usize>);

    impl<'a> Guard<'a> {
        fn new(open: &'a Cell<usize>) -> Self {
            open.set(open.get() + 1);
            Self(open)
        }
    }

    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_to_answer_wins_and_losers_are_closed() {
        use Does::{Answer, Nothing};
        assert_eq!(run(&[Answer(10), Answer(0)]).await, (Ok(0), vec![(0, 0)], 10));
        assert_eq!(run(&[Nothing, Answer(10)]).await, (Ok(1), vec![(0, 0), (1, 250)], 260));
        // A late first one still wins against a later second one.
        assert_eq!(run(&[Answer(300), Answer(100)]).await, (Ok(0), vec![(0, 0), (1, 250)], 300));
        let (outcome, begun, _) = run(&[Nothing, Nothing, Answer(1)]).await;
        assert_eq!((outcome, begun), (Ok(2), vec![(0, 0), (1, 250), (2, 500)]));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_the_next_begins_at_once() {
        use Does::{Answer, Fail};
        let refused = Fail(5, io::ErrorKind::ConnectionRefused);
        assert_eq!(run(&[refused, Answer(10)]).await, (Ok(1), vec![(0, 0), (1, 5)], 15));
        let unreachable = Fail(0, io::ErrorKind::NetworkUnreachable);
        assert_eq!(run(&[unreachable, unreachable, Answer(0)]).await.0, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn h15_no_more_attempts_run_than_are_accounted_for() {
        use Does::{Answer, Fail, Nothing};
        let (outcome, begun, _) = run(&[Nothing, Nothing, Nothing, Nothing, Answer(1)]).await;
        assert_eq!(outcome, Ok(4));
        assert_eq!(begun, [(0, 0), (1, 250), (2, 500), (3, 10_000), (4, 10_250)]);
        let refused = Fail(600, io::ErrorKind::ConnectionRefused);
        let (outcome, begun, _) = run(&[Nothing, Nothing, refused, Answer(0)]).await;
        assert_eq!((outcome, begun), (Ok(3), vec![(0, 0), (1, 250), (2, 500), (3, 1_100)]));
    }

    #[tokio::test(start_paused = true)]
    async fn all_attempts_share_the_time_and_the_failure_names_the_worst_kind() {
        use Does::{Fail, Nothing};
        let refused = Fail(5, io::ErrorKind::ConnectionRefused);
        let unreachable = Fail(5, io::ErrorKind::HostUnreachable);
        for (script, expected) in [
            (&[][..], "it has no address"),
            (&[refused, unreachable], "it refuses connections"),
            (&[unreachable], "there is no way to it from this network"),
            (&[Nothing, unreachable], "it did not answer in time"),
            (&[Fail(5, io::ErrorKind::PermissionDenied)], "no connection to it can be made"),
        ] {
            assert_eq!(run(script).await.0, Err(expected.to_owned()));
        }
        let (_, begun, took) = run(&[Nothing; 16]).await;
        assert_eq!((begun.len(), took), (9, 30_000));
    }

    #[tokio::test(start_paused = true)]
    async fn the_whole_race_ends_in_time() {
        let patience = Patience { attempt: Duration::from_secs(10), whole: Duration::from_millis(600) };
        let start = Instant::now();
        let addresses = vec![SocketAddr::from(([192, 0, 2, 1], 1)); 16];
        let begun = Cell::new(0);
        let connect = |_| {
            begun.set(begun.get() + 1);
            pending::<io::Result<()>>()
        };
        assert!(race(addresses, connect, patience).await.is_err());
        assert_eq!((begun.get(), start.elapsed().as_millis()), (3, 600));
    }
}
