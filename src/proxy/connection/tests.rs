//! The pipeline from a client's socket to an origin on loopback.

mod admission;
mod company;
mod decisions;
mod harness;
mod held;
mod kept;
mod limits;
mod plain;
mod streaming;
mod tls;
mod tunnel;
mod websocket;
