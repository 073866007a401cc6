//! What a killed command or sandbox left in a repository goes with the next command, whichever it is (F11).

use crate::name::CloisterName;
use crate::paths::{Lock, Paths};
use crate::sandbox::Receipt;

/// Removes the placeholders of sandboxes that have ended without `stop`. Their receipts stay: what else they left is
/// for `start` and `stop`.
///
/// It costs a look at the receipts when nothing is left, waits for nobody, and never fails: whoever holds a lock is
/// at work on the same, and what can't be removed now is tried again.
pub fn sweep(paths: &Paths) {
    let Ok(found) = Receipt::load_all(&paths.receipts_dir()) else { return };
    let mut left = found.receipts.iter().filter(|receipt| has_litter(receipt)).peekable();
    if left.peek().is_none() {
        return;
    }
    let Ok(Some(_shared)) = Lock::try_acquire(&paths.placeholder_lock()) else { return };
    for receipt in left {
        sweep_one(&receipt.cloister, paths);
    }
}

fn has_litter(receipt: &Receipt) -> bool {
    !receipt.placeholders.is_empty() && !receipt.is_running()
}

fn sweep_one(name: &CloisterName, paths: &Paths) {
    let Ok(Some(_lock)) = Lock::try_acquire(&paths.cloister_lock(name)) else { return };
    // Read again under the locks: a start or stop may have come first.
    let file = paths.receipt_file(name);
    let Ok(Some(mut receipt)) = Receipt::load(&file) else { return };
    let Ok(in_use) = Receipt::placeholders_in_use(&paths.receipts_dir(), name) else { return };
    if !has_litter(&receipt) || !in_use.unreadable.is_empty() {
        return;
    }
    if receipt.remove_placeholders(&in_use).is_empty() {
        // A directory of the user's that comes to lie there later must not be taken for one of these.
        receipt.placeholders.clear();
        let _ = receipt.keep(&file);
    }
}
