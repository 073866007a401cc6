//! The integration tests: one binary.
#![expect(clippy::unwrap_used, reason = "a step of a test that fails should stop it there")]

mod architecture;
mod harness;
mod help;
mod manifest;
mod nix;
mod readme;
mod requirement;
mod static_binary;
mod system;
mod terminal;
