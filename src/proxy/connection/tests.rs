//! The pipeline from a client's socket to an origin on loopback.

mod admission;
mod decisions;
mod harness;
mod limits;
mod plain;
mod tls;
mod tunnel;
