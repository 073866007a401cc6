//! Cloister.

pub mod git;
pub mod init;
pub mod name;
pub mod paths;
pub mod policy;
pub mod process;
pub mod project;
pub mod sandbox;
pub mod token;
