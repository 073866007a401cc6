//! The hashed tokens on disk: what a guardian that was killed needs to serve the same sandboxes again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::guardian::control::api::Registration;
use crate::name::{CloisterId, CloisterName, ProjectId};
use crate::paths::{self, Paths, PathsError};
use crate::token::HashedToken;

/// One registered sandbox, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    /// SHA-256 of the token.
    pub(super) token: HashedToken,
    pub(super) registration: Registration,
    pub(super) project_id: ProjectId,
    /// Seconds since 1970.
    pub(super) created: u64,
}

/// Why a token could not be kept, read or forgotten.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A file operation failed.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// A file can't be read.
    #[error("cannot read the token file `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what a guardian wrote.
    #[error("cannot understand the token file `{path}`: {reason}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Kept {
    pub(super) fn id(&self) -> CloisterId {
        CloisterId::of(&self.registration.cloister, &self.registration.directory.to_string_lossy())
    }

    pub(super) fn write(&self, paths: &Paths) -> Result<(), TokenError> {
        let path = file(paths, &self.registration.cloister);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| TokenError::Parse { path: path.clone(), reason: error.to_string() })?;
        text.push(b'\n');
        Ok(paths::write_atomic(&path, &text)?)
    }

    /// Reads all that is kept; one bad file stops it, for a guardian that starts must serve all or say why not.
    pub(super) fn read_all(paths: &Paths) -> Result<Vec<Self>, TokenError> {
        list(paths)?.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Result<Self, TokenError> {
        let text = fs::read(path).map_err(|source| TokenError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, TokenError> {
        let refused = |reason: String| TokenError::Parse { path: path.to_owned(), reason };
        let kept: Self = serde_json::from_slice(text).map_err(|error| refused(error.to_string()))?;
        if path.file_stem().and_then(|stem| stem.to_str()) != Some(kept.registration.cloister.as_str()) {
            return Err(refused(format!("it names the cloister `{}`", kept.registration.cloister)));
        }
        if ProjectId::of(&kept.registration.directory.to_string_lossy()) != kept.project_id {
            return Err(refused("its project number does not belong to its directory".to_owned()));
        }
        Ok(kept)
    }
}

/// A token file, and the cloister that it belongs to as far as it can be read.
pub type TokenFile = (PathBuf, Result<(CloisterName, CloisterId), TokenError>);

/// Every token file, in the order of their names.
pub fn files(paths: &Paths) -> Result<Vec<TokenFile>, TokenError> {
    Ok(list(paths)?.into_iter().map(|path| (path.clone(), owner(&path))).collect())
}

/// The paths of all token files, in the order of their names.
fn list(paths: &Paths) -> Result<Vec<PathBuf>, TokenError> {
    let directory = paths.tokens_dir();
    let listed = fs::read_dir(&directory).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>()
    });
    let mut files = match listed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| TokenError::Read { path: directory, source })?,
    };
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    Ok(files)
}

/// The number of the cloister that a token is kept for; `None` when there is none.
pub fn kept_for(paths: &Paths, cloister: &CloisterName) -> Result<Option<CloisterId>, TokenError> {
    let path = file(paths, cloister);
    if path.exists() { owner(&path).map(|(_, id)| Some(id)) } else { Ok(None) }
}

fn owner(path: &Path) -> Result<(CloisterName, CloisterId), TokenError> {
    let kept = Kept::read(path)?;
    Ok((kept.registration.cloister.clone(), kept.id()))
}

/// Removes a cloister's token file, also while no guardian runs; a guardian that starts later does not know it.
pub fn forget(paths: &Paths, cloister: &CloisterName) -> Result<(), TokenError> {
    Ok(paths::remove_if_present(&file(paths, cloister))?)
}

/// What nobody can guess, for a token or a key.
pub(in crate::guardian) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

fn file(paths: &Paths, cloister: &CloisterName) -> PathBuf {
    paths.tokens_dir().join(format!("{cloister}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ProjectName;
    use crate::token::PlainToken;

    fn kept(name: &str) -> Kept {
        Kept {
            token: HashedToken::of(&PlainToken::from_bytes([7; 32])),
            registration: Registration {
                cloister: CloisterName::parse(name).unwrap(),
                project: ProjectName::parse(name).unwrap(),
                directory: "/src/demo".into(),
                branch: None,
                network: crate::config::Network::Guarded,
            },
            project_id: ProjectId::of("/src/demo"),
            created: 1,
        }
    }

    fn paths(home: &Path) -> Paths {
        let home = home.as_os_str().to_owned();
        Paths::from_environment(|name| (name == "HOME").then(|| home.clone())).unwrap()
    }

    #[test]
    fn tokens_survive_and_are_not_kept_in_the_plain() {
        let home = tempfile::tempdir().unwrap();
        let paths = paths(home.path());
        kept("b").write(&paths).unwrap();
        kept("a").write(&paths).unwrap();
        assert_eq!(Kept::read_all(&paths).unwrap(), [kept("a"), kept("b")]);
        let text = fs::read_to_string(file(&paths, &CloisterName::parse("a").unwrap())).unwrap();
        assert!(!text.contains(PlainToken::from_bytes([7; 32]).expose()));
        forget(&paths, &CloisterName::parse("a").unwrap()).unwrap();
        forget(&paths, &CloisterName::parse("a").unwrap()).unwrap();
        assert_eq!(Kept::read_all(&paths).unwrap(), [kept("b")]);
    }

    #[test]
    fn a_file_that_was_moved_or_edited_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let paths = paths(home.path());
        kept("a").write(&paths).unwrap();
        fs::rename(paths.tokens_dir().join("a.json"), paths.tokens_dir().join("b.json")).unwrap();
        assert!(matches!(Kept::read_all(&paths), Err(TokenError::Parse { .. })));
        let mut other = kept("b");
        other.project_id = ProjectId::of("/src/other");
        other.write(&paths).unwrap();
        assert!(matches!(Kept::read_all(&paths), Err(TokenError::Parse { .. })));
    }
}
