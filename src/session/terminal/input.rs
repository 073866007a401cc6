//! The user's input on its way to the command: read by a thread, and no faster than the command takes it.

use std::io::{self, Read};
use std::sync::{Condvar, Mutex, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

use crate::init::wire::{FromHost, INPUT_WINDOW_BYTES};

/// How much input is read at once, in bytes.
const CHUNK_BYTES: usize = 16 * 1024;

/// Bytes of input that the command has not taken yet, bounded.
#[derive(Debug)]
pub(super) struct Window {
    left: Mutex<usize>,
    grown: Condvar,
}

impl Default for Window {
    fn default() -> Self {
        Self { left: Mutex::new(INPUT_WINDOW_BYTES), grown: Condvar::new() }
    }
}

impl Window {
    fn take(&self, count: usize) {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left =
            self.grown.wait_while(left, |left| *left < count).unwrap_or_else(PoisonError::into_inner);
        *left -= count;
    }

    /// A sandbox can widen its own window only up to its size.
    pub(super) fn give_back(&self, count: usize) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_add(count).min(INPUT_WINDOW_BYTES);
        self.grown.notify_one();
    }
}

/// Passes the input on until it ends.
pub(super) fn forward(messages: &UnboundedSender<FromHost>, window: &Window) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let message = match io::stdin().lock().read(&mut buffer) {
            Ok(0) => FromHost::InputEnd,
            Ok(count) => {
                window.take(count);
                FromHost::Input(buffer[..count].to_vec())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => FromHost::InputEnd,
        };
        let is_end = message == FromHost::InputEnd;
        if messages.send(message).is_err() || is_end {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_can_not_widen_its_window() {
        let window = Window::default();
        window.take(1);
        window.give_back(usize::MAX);
        window.take(INPUT_WINDOW_BYTES);
        assert_eq!(*window.left.lock().unwrap(), 0);
    }
}
