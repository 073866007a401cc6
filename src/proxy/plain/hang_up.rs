//! Whether a client has gone in both directions, so that nobody is left to hear an answer (H15). A client that has
//! only ended its own direction still listens.

use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::sleep;

/// How often it is looked: readiness would tell the end of one direction again and again.
const BEAT: Duration = Duration::from_millis(250);

/// A look at a client's socket that does not need the socket: both its directions are in use.
pub(super) struct Watch(Option<OwnedFd>);

impl Watch {
    pub(super) fn new(stream: &impl AsFd) -> Self {
        // Without a descriptor left, the idle limit is what ends the exchange.
        Self(stream.as_fd().try_clone_to_owned().ok())
    }

    /// Waits until the client has gone.
    pub(super) async fn gone(self) {
        let Some(socket) = self.0 else { return pending().await };
        gone(&socket).await;
    }
}

/// Waits until the client has gone, whose socket nobody else uses meanwhile.
pub(in crate::proxy) async fn gone(socket: &impl AsFd) {
    loop {
        sleep(BEAT).await;
        if has_hung_up(socket) {
            return;
        }
    }
}

fn has_hung_up(socket: &impl AsFd) -> bool {
    let mut asked = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok() && asked[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn h15_only_a_client_that_left_in_both_directions_has_gone() {
        let (mut client, proxy) = UnixStream::pair().unwrap();
        assert!(!has_hung_up(&proxy));
        client.write_all(b"bytes that nobody has read").unwrap();
        assert!(!has_hung_up(&proxy));
        client.shutdown(Shutdown::Write).unwrap();
        assert!(!has_hung_up(&proxy));
        drop(client);
        assert!(has_hung_up(&proxy));
    }
}
