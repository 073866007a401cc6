//! Shares over faked hosts.
