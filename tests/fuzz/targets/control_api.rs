//! No text makes the parsers of the control interface panic, and what they read can be written (I5).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cloister::guardian::fuzz::control(bytes));
