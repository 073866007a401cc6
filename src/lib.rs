//! Cloister.

pub mod name;
pub mod policy;
pub mod proxy;
pub mod token;
