//! Cloister.

pub mod audit;
pub mod cli;
pub mod config;
pub mod git;
pub mod guardian;
pub mod init;
pub mod name;
pub mod paths;
pub mod policy;
pub mod process;
pub mod project;
pub mod proxy;
pub mod text;
pub mod token;
