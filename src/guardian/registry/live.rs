//! The settings while the guardian runs: what changed is applied, what is broken leaves the rules before it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::{Registry, RegistryError, Served};
use crate::audit::{Event, Record};
use crate::config::decisions::{self, Place};
use crate::config::{Config, ConfigError, Owner, Problem};
use crate::guardian::control::api::Reloaded;
use crate::guardian::handover::Order;
use crate::name::{CloisterId, CloisterName, ProjectName};
use crate::policy::Rule;

/// What the last look at the files gave.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The files that can't be used, in the order in which they are read.
    pub(super) broken: Vec<Broken>,
    /// What is kept under the name of a project or cloister, and belongs to another: it is of no effect.
    pub(super) foreign: Vec<Problem>,
    /// How often settings were read and held.
    pub(super) good_reloads: u64,
    /// How often something in them was broken.
    pub(super) bad_reloads: u64,
    /// Whether the last record is written.
    pub(super) is_over: bool,
    /// When settings changed last.
    pub(super) changed: Option<Timestamp>,
}

/// A file that can't be used.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    pub(super) path: PathBuf,
    /// All that is wrong with it.
    pub(super) problems: Vec<Problem>,
    pub(super) since: Timestamp,
}

/// What the files hold now.
#[derive(Default)]
struct Loaded {
    good: BTreeMap<Owner, Arc<Config>>,
    /// What was answered for cloisters alone.
    grants: BTreeMap<CloisterName, Vec<Rule>>,
    foreign: Vec<Problem>,
    /// By file, in the order in which they are read.
    problems: Vec<(PathBuf, Vec<Problem>)>,
    /// Every file that was read.
    read: BTreeSet<PathBuf>,
}

/// What became of the cloisters of one project.
#[derive(Default)]
struct Change {
    what: BTreeSet<&'static str>,
    cloisters: usize,
    closed_tunnels: usize,
}

impl Registry {
    /// What is known of the settings; whoever holds it keeps them from being read by others.
    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        // What a panic leaves behind is put right by the next look at the files.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all rules again and applies what is good.
    ///
    /// # Errors
    /// What is wrong with the files; the cloisters that they concern keep the rules they have.
    pub(in crate::guardian) fn reload(&self) -> Result<Reloaded, RegistryError> {
        let reloaded = self.refresh();
        let problems: Vec<Problem> =
            self.live().broken.iter().flat_map(|broken| broken.problems.clone()).collect();
        if problems.is_empty() { Ok(reloaded) } else { Err(ConfigError { problems }.into()) }
    }

    /// Reads all rules again, applies what changed, and writes down what became of it, here and in the guardian before
    /// this one.
    pub(in crate::guardian) fn refresh(&self) -> Reloaded {
        let mut live = self.live();
        let served: Vec<(Owner, CloisterName, CloisterId)> =
            self.served().values().map(Served::names).collect();
        let loaded = self.load(&served);
        let mut changes: BTreeMap<Owner, Change> = BTreeMap::new();
        let mut reloaded = Reloaded { cloisters: 0, closed_tunnels: 0 };
        for served in self.served().values_mut() {
            let (owner, name, _) = served.names();
            let config = loaded.good.get(&owner);
            let grants = loaded.grants.get(&name);
            let is_mended = served.forget_what_is_read(|place| match place {
                Place::Global | Place::Project(_) => config.is_some(),
                Place::Session(..) => grants.is_some(),
            });
            let has_answers = grants.is_some_and(|grants| served.adopt_grants(grants)) || is_mended;
            reloaded.cloisters += usize::from(config.is_some());
            let what = config.and_then(|config| served.adopt(config));
            if what.is_none() && !has_answers {
                continue;
            }
            served.obey();
            let closed = served.client.revalidate();
            reloaded.closed_tunnels += closed;
            self.revisit(served);
            if let Some(what) = what {
                let change = changes.entry(owner).or_default();
                change.what.extend(what);
                change.cloisters += 1;
                change.closed_tunnels += closed;
            }
        }
        // The guardian that took over tells of settings itself.
        if !live.is_over && !self.log.is_passed() {
            self.tell(&mut live, &loaded, &changes);
        }
        // Also when nothing changed here: the one before may have read the files at another time.
        self.order(Order::Reload);
        reloaded
    }

    /// Reads the files that concern these cloisters and their projects.
    fn load(&self, served: &[(Owner, CloisterName, CloisterId)]) -> Loaded {
        let projects: BTreeSet<&Owner> = served.iter().map(|(owner, ..)| owner).collect();
        let mut loaded = Loaded::default();
        loaded.read.extend(Config::files_for(&self.paths, None));
        if let Err(error) = Config::load_for(&self.paths, None) {
            loaded.add(error.problems);
        }
        for project in projects {
            loaded.read.extend(Config::files_for(&self.paths, Some(project)));
            match Config::load_for(&self.paths, Some(project)) {
                Ok(config) => {
                    loaded.foreign.extend(config.unused.clone());
                    loaded.good.insert(project.clone(), Arc::new(config));
                }
                Err(error) => loaded.add(error.problems),
            }
        }
        for (_, cloister, id) in served {
            loaded.read.insert(self.paths.grants_file(cloister));
            match decisions::load_grants(&self.paths, cloister, id) {
                Ok((grants, foreign)) => {
                    loaded.foreign.extend(foreign);
                    loaded.grants.insert(cloister.clone(), grants);
                }
                Err(error) => loaded.add(error.problems),
            }
        }
        loaded
    }

    /// Writes into the log what changed, what broke and what is good again.
    fn tell(&self, live: &mut Live, loaded: &Loaded, changes: &BTreeMap<Owner, Change>) {
        if loaded.problems.is_empty() {
            live.good_reloads += 1;
        } else {
            live.bad_reloads += 1;
        }
        let now = Timestamp::now();
        // People read it: no fractions of a second.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        live.foreign.clone_from(&loaded.foreign);
        let before = std::mem::take(&mut live.broken);
        for (path, problems) in &loaded.problems {
            let earlier = before.iter().find(|broken| broken.path == *path);
            if earlier.is_none_or(|earlier| earlier.problems != *problems) {
                self.note(&about(Event::ConfigInvalid, path).detail(invalid(problems)));
            }
            let since = earlier.map_or(now, |earlier| earlier.since);
            live.broken.push(Broken { path: path.clone(), problems: problems.clone(), since });
        }
        let is_good = |path: &PathBuf| {
            loaded.read.contains(path) && !loaded.problems.iter().any(|(broken, _)| broken == path)
        };
        for broken in before.iter().filter(|broken| is_good(&broken.path)) {
            let detail = format!("`{}` is good again", broken.path.display());
            self.note(&about(Event::ConfigReload, &broken.path).detail(detail));
        }
        for (owner, change) in changes {
            live.changed = Some(now);
            self.note(&Record::new(Event::ConfigReload).project(&owner.name).detail(change.told()));
        }
    }

    /// Writes a record about settings: they hold whether or not it can be written.
    fn note(&self, record: &Record) {
        if let Err(error) = self.append(record.clone()) {
            tracing::error!(error = &error as &dyn std::error::Error, "a change of settings is not recorded");
        }
    }

    /// Tells whether this guardian has to notice what changes: not when another has taken over, or all has ended.
    pub(super) fn follows(&self) -> bool {
        !self.live().is_over && !self.log.is_passed()
    }

    /// The files whose content matters now.
    pub(super) fn followed(&self) -> BTreeSet<PathBuf> {
        let served = self.served();
        let own = served.values().flat_map(|served| Config::files_for(&self.paths, Some(&served.owner())));
        let grants = served.keys().map(|cloister| self.paths.grants_file(cloister));
        own.chain(grants).chain(Config::files_for(&self.paths, None)).collect()
    }
}

impl Loaded {
    /// Adds problems of files; what was found already (`config.yaml` is read for every project) is passed over.
    fn add(&mut self, problems: Vec<Problem>) {
        for problem in problems {
            match self.problems.iter_mut().find(|(path, _)| *path == problem.path) {
                Some((_, known)) if known.contains(&problem) => {}
                Some((_, known)) => known.push(problem),
                None => self.problems.push((problem.path.clone(), vec![problem])),
            }
        }
    }
}

impl Served {
    /// Whose settings are its own, and which answers.
    fn names(&self) -> (Owner, CloisterName, CloisterId) {
        (self.owner(), self.kept.registration.cloister.clone(), self.kept.id())
    }

    /// Takes other settings, and says what of them changed; `None` when nothing did.
    fn adopt(&mut self, config: &Arc<Config>) -> Option<Vec<&'static str>> {
        if self.config == *config {
            return None;
        }
        let what = difference(&self.config, config);
        self.take(config);
        Some(what)
    }

    /// Takes other answers, and says whether they are.
    fn adopt_grants(&mut self, grants: &[Rule]) -> bool {
        let is_other = self.grants != grants;
        self.grants = grants.to_vec();
        is_other
    }
}

/// Says in words what two settings differ in.
fn difference(old: &Config, new: &Config) -> Vec<&'static str> {
    let (one, other) = (&old.proxy, &new.proxy);
    let rules = one.rules != other.rules || one.unlisted != other.unlisted;
    let addresses = one.pins != other.pins || one.private != other.private;
    let limits = one.rate_limit != other.rate_limit
        || one.max_tunnels != other.max_tunnels
        || one.idle_timeout != other.idle_timeout
        || one.max_duration != other.max_duration;
    let parts = [
        ("rules", rules),
        ("pins and private names", addresses),
        ("limits", limits),
        ("the way out", one.upstream != other.upstream),
        ("asking", one.approval_timeout != other.approval_timeout || old.approvals != new.approvals),
    ];
    let changed: Vec<&str> =
        parts.iter().filter(|(_, is_changed)| *is_changed).map(|(what, _)| *what).collect();
    if changed.is_empty() { vec!["settings of new sandboxes"] } else { changed }
}

impl Change {
    fn told(&self) -> String {
        let what: Vec<&str> = self.what.iter().copied().collect();
        let (cloisters, tunnels) = (self.cloisters, self.closed_tunnels);
        format!("changed: {}; cloisters: {cloisters}; closed tunnels: {tunnels}", what.join(", "))
    }
}

/// The first problem, and how many more there are.
fn invalid(problems: &[Problem]) -> String {
    let first = problems.first().map(ToString::to_string).unwrap_or_default();
    match problems.len() {
        0 | 1 => format!("{first}; the rules before it hold"),
        many => format!("{first} (and {} more); the rules before it hold", many - 1),
    }
}

/// Begins a record about a file of settings; one in `projects/` is its project's.
fn about(event: Event, path: &Path) -> Record {
    let record = Record::new(event);
    let in_projects = path.parent().and_then(Path::file_name).is_some_and(|folder| folder == "projects");
    let stem = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| in_projects);
    match stem.and_then(|stem| ProjectName::parse(stem).ok()) {
        Some(project) => record.project(&project),
        None => record,
    }
}
