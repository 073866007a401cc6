//! The real binary on real input: sandboxes, the guardian, the proxy, bad input.

mod bad_input;
mod containment;
mod files;
mod lifecycle;
mod limits;
mod names;
mod origin;
mod root;
mod sessions;
mod way_out;
