//! A chunked body is the same body however it is cut into pieces, and ends where it ends (H1, H6).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cloister::proxy::fuzz::chunked_body(bytes));
