//! Cloister.

pub mod audit;
pub mod name;
pub mod policy;
pub mod text;
pub mod token;
