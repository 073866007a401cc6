//! System calls that no safe crate offers: the only module with `unsafe` code.
#![allow(
    unsafe_code,
    reason = "each block says why it is sound; everything else builds on what is safe here"
)]

pub mod attempt;
