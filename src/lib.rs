//! Cloister.

pub mod name;
pub mod policy;
pub mod token;
