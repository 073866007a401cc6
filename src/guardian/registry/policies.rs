//! The rules of one sandbox as they hold now.

use std::sync::{Arc, PoisonError, RwLock};

use crate::policy::Policy;
use crate::proxy::Policies;

/// A policy that a reload replaces as a whole.
pub(super) struct CurrentPolicy(RwLock<Arc<Policy>>);

impl CurrentPolicy {
    pub(super) fn new(policy: Policy) -> Self {
        Self(RwLock::new(Arc::new(policy)))
    }

    pub(super) fn replace(&self, policy: Policy) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }
}

impl Policies for CurrentPolicy {
    fn current(&self) -> Option<Arc<Policy>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}
