//! The proxy beside others.

fn main() {}
