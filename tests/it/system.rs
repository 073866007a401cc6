//! The real binary on real input: sandboxes, the guardian, the proxy, bad input.

mod audit;
mod bad_input;
mod clients;
mod company;
mod containment;
mod control;
mod crashes;
mod files;
mod floods;
mod gc;
mod guards;
mod handover;
mod lifecycle;
mod limits;
mod live;
mod names;
mod origin;
mod planted;
mod probes;
mod root;
mod seen;
mod sessions;
mod streams;
mod terminals;
mod way_out;
mod wire;
