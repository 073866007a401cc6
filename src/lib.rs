//! Cloister.

pub mod audit;
pub mod config;
pub mod name;
pub mod policy;
pub mod text;
pub mod token;
