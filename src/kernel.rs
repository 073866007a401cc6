//! System calls that no safe crate offers: the only module with `unsafe` code.

pub mod attempt;
mod enter;
mod idmap;
mod sockets;

pub use enter::{enter_mounts, enter_owner};
pub use idmap::{IdRange, Trees, forget_keys, set_tree_attributes, unshare_mounts, user_namespace};
pub use sockets::refuse_descriptors;
