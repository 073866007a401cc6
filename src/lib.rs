//! Cloister.

pub mod audit;
pub mod config;
pub mod name;
pub mod paths;
pub mod policy;
pub mod proxy;
pub mod token;
