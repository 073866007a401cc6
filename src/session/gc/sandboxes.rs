//! What sandboxes leave: receipts, tokens, sockets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Collector, GcProblem, Kind, Mode, entries};
use crate::guardian::client;
use crate::name::{CloisterId, CloisterName};
use crate::paths::{self, Lock};
use crate::sandbox::Receipt;
use crate::session::stop;
use crate::text::with_causes;

impl Collector<'_> {
    /// Clears away sandboxes that have ended, the way `stop` does.
    pub(super) async fn receipts(&mut self) {
        for file in entries(&self.paths.receipts_dir()) {
            let Some(name) = cloister_of(&file) else { continue };
            match Receipt::load(&file) {
                Ok(Some(receipt)) if receipt.cloister != name => {
                    self.is_certain = false;
                    let reason = format!("it is the receipt of `{}` under another name", receipt.cloister);
                    self.keep(Kind::Receipt, &file, reason);
                }
                Ok(Some(receipt)) if receipt.is_running() => drop(self.running.insert(receipt.project)),
                Ok(Some(_)) => self.clear(Kind::Receipt, &file, &name, "its sandbox has ended").await,
                Ok(None) => {}
                Err(error) => {
                    self.is_certain = false;
                    self.keep(Kind::Receipt, &file, with_causes(&error));
                }
            }
        }
    }

    /// Revokes tokens that no sandbox has.
    pub(super) async fn tokens(&mut self) {
        let files = match client::token_files(self.paths) {
            Ok(files) => files,
            Err(error) => {
                self.is_certain = false;
                return self.found.problems.push(error.into());
            }
        };
        for (file, owner) in files {
            match owner {
                Ok((name, _)) => {
                    // A receipt in dry run stands for its token too.
                    if !self.has_receipt(&name) {
                        self.clear(Kind::Token, &file, &name, "no sandbox has it").await;
                    }
                }
                Err(error) => {
                    self.is_certain = false;
                    self.keep(Kind::Token, &file, with_causes(&error));
                }
            }
        }
    }

    /// Tells whether a cloister has a receipt, once nobody is starting or stopping it.
    fn has_receipt(&self, name: &CloisterName) -> bool {
        let lock = self.paths.cloister_lock(name);
        // Where there is no lock, nobody can hold it.
        let _lock = lock.exists().then(|| Lock::acquire(&lock));
        self.paths.receipt_file(name).exists()
    }

    async fn clear(&mut self, kind: Kind, file: &Path, name: &CloisterName, reason: &str) {
        if self.mode == Mode::DryRun {
            return self.remove(kind, file, reason, || Ok(()));
        }
        match stop::clear(name, self.paths).await {
            Ok(None) => {}
            Ok(Some(mut stopped)) => {
                if stopped.problems.is_empty() {
                    self.remove(kind, file, reason, || Ok(()));
                }
                self.found.problems.extend(stopped.problems.drain(..).map(GcProblem::from));
                self.found.stopped.push(stopped);
            }
            Err(error) => self.found.problems.push(error.into()),
        }
    }

    /// Removes sockets, their directories and links that belong to no receipt and no token.
    pub(super) fn sockets(&mut self) {
        let runtime = self.paths.runtime_dir().to_owned();
        // What is there is listed before who owns it: a start writes its token before it makes a socket.
        let found = ["s", "i", "by-name"].map(|folder| entries(&runtime.join(folder)));
        let known = self.known();
        if !self.is_certain {
            return;
        }
        let reason = "no sandbox has it";
        let [directories, sockets, links] = found;
        let is_foreign = |name: Option<&str>| name.is_some_and(|name| !known.contains(name));
        for path in directories {
            if is_foreign(path.file_name().and_then(|name| name.to_str())) {
                self.remove(Kind::Socket, &path, reason, || Ok(paths::remove_directory(&path)?));
            }
        }
        for path in sockets {
            if is_foreign(path.file_stem().and_then(|name| name.to_str())) {
                self.remove(Kind::Socket, &path, reason, || Ok(paths::remove_if_present(&path)?));
            }
        }
        for path in links {
            let target = fs::read_link(&path).unwrap_or_default();
            if is_foreign(target.file_name().and_then(|name| name.to_str())) {
                self.remove(Kind::Socket, &path, reason, || Ok(paths::remove_if_present(&path)?));
            }
        }
    }

    /// The numbers of the cloisters that have a receipt or a token.
    fn known(&mut self) -> BTreeSet<String> {
        let receipts = Receipt::load_all(&self.paths.receipts_dir());
        let tokens = client::token_files(self.paths);
        self.is_certain &= receipts.as_ref().is_ok_and(|found| found.unreadable.is_empty()) && tokens.is_ok();
        let receipts = receipts.unwrap_or_default().receipts.into_iter().map(|receipt| receipt.id);
        let owners = tokens.unwrap_or_default().into_iter().filter_map(|(_, owner)| owner.ok());
        let ids = receipts.chain(owners.map(|(_, id)| id));
        ids.map(|id: CloisterId| id.as_str().to_owned()).collect()
    }
}

/// The cloister whose receipt a file is by its name.
fn cloister_of(file: &Path) -> Option<CloisterName> {
    let is_receipt = file.extension().is_some_and(|extension| extension == "json");
    CloisterName::parse(file.file_stem().filter(|_| is_receipt)?.to_str()?).ok()
}
