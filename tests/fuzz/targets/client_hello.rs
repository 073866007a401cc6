//! No bytes make the reader of hellos panic, and the name that it finds is the one that others find (N10, N13).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| cloister::proxy::fuzz::client_hello(bytes));
