//! Cloister puts an AI coding agent in a sandbox where it may do anything and harm nothing.
//!
//! This page is the architecture: the way of one start, the way of one request, who may import whom, and the
//! invariants, each with the type or test that keeps it.
//!
//! # The way of one start
//!
//! ```text
//! cloister start
//!   → project            which directory, under which name; refused where it holds $HOME or what Cloister reads
//!   → config             config.yaml, then projects/<name>.yaml: raw → validate → Config, all problems at once
//!   → lock               one start at a time near a cloister; whoever comes second enters
//!   → guards             what the host would execute or obey, what is secret, what is there now (the baseline)
//!   → host               programs of the host, what the settings share
//!   → Spec → Plan        pure values: everything the sandbox will see, then the one command that makes it
//!   → guardian           started if none runs; the control socket wants a key that no mount contains
//!   → register           the guardian opens the sandbox's socket and gives out its token, once
//!   → Receipt            on disk before anything is made, so that whatever is killed, the next command clears it away
//!   → Plan::apply        as root through the stage (idmapped mounts, an unprivileged user); bwrap makes it; limits hold
//!                        it before its first process gets its settings
//!   → init (inside)      relay on 127.0.0.1:3128, sessions, reaping; undumpable, its socket in no mount
//!   → session            frames of bytes, both ways, checked; the exit code of the command
//! ```
//!
//! # The way of one request
//!
//! ```text
//! client in the sandbox
//!   → proxy listener     who: which socket, then which token (constant time, hashed at rest)
//!   → admission          how much: connections, a share of the descriptors, a bucket of requests; a thread of its own
//!   → request head       what: one parser, one canonical form; anything ambiguous is refused
//!   → policy (pure)      deny? allow? else ask               ← rules: built-in + global + project + answers, live
//!   → approval           the client is held, a human answers, and policy judges again (below)
//!   → resolve            only now; the cache holds answers and no verdicts: all of them are judged every time
//!   → Permit             proof: authority + addresses + rule; only `policy` can make one
//!   → audit              the record is written before the first byte flows, those of several requests at once;
//!                        repetitions of a refusal are counted
//!   → dial(permit)       the one place that opens an outgoing socket: both families in a race, or through the
//!                        company's proxy by the checked address; a kept connection wants the permit, too
//!   → ClientHello        CONNECT on 443: the SNI must be the authorised host, also after a HelloRetryRequest
//!   → tunnel             bytes both ways (large flows inside of the kernel), half-close kept, limits of silence and
//!                        duration, closed when its rule is withdrawn; a WebSocket becomes one, too
//!   → audit              closed, with byte counts
//! ```
//!
//! # The way of one answer
//!
//! ```text
//! policy says ask        nothing that an answer may not open is asked: no address, no metadata, no forbidden pin
//!   → Counsel            the proxy's `Decider` of one sandbox
//!   → Queue              one request for a cloister and an authority, however many wait; bounded for each cloister;
//!                        withdrawn with the last who waits (a killed client shows as the end of its direction)
//!   → audit              `proxy.ask`, before anybody sees it
//!   → page, watch        live through the queue's version; when nobody looks: desktop, bell, a program of the user's
//!   → claim              one answers, nobody else can, and the request does not end meanwhile
//!   → decisions          kept in a file under a lock (session, project, global); where that fails, in memory, and said so
//!   → audit              `approval.decided`; without it what was kept is taken out again
//!   → rules              made anew of all files; tunnels and requests that they decide by now end or go on
//!   → settle             whoever waits is judged again; `once` is a grant in their own requests ([`policy::Request`])
//! ```
//!
//! # The life of a guardian
//!
//! ```text
//! lock → audit log (repaired) → settings → sandboxes of the one before → control socket → serving
//!   settings change      each project reads its files anew; a broken one keeps the rules that held, and says so
//!   another binary       the new guardian asks on the control socket for the sockets, gets them and the lock, opens the
//!                        log where the old one closed it, serves; the old one carries its tunnels to their end, sends
//!                        its records over, obeys revocations, and ends all at once when the new one is gone
//!   stop                 nothing more is let in; what is open ends, at once or after a time; last record, head
//!   kill -9              every connection ends; the next command starts a guardian that serves the same sandboxes
//! ```
//!
//! # Modules
//!
//! | layer | modules | may use |
//! |---|---|---|
//! | 0 pure values | [`name`], [`token`], [`text`], [`policy`] | no I/O, no async, no clock |
//! | 1 base | [`kernel`], [`paths`], [`process`], [`audit`], [`config`] | 0; `config` and `audit` also `paths` |
//! | 2 parts | [`git`], [`project`] (→ `git`), [`files`], [`sandbox`], [`init`], [`approval`], [`proxy`] | 0–1, not each other unless named |
//! | 3 wholes | [`web`], [`guardian`] (→ `web`), [`session`] (→ `guardian::client`, `init`) | 0–2 |
//! | 4 edge | [`cli`], `main` | all |
//!
//! Sole owners: [`git`] of git2; [`proxy`] of dialling, DNS and TLS; [`approval`] of the life of a request; [`config`] of the
//! form of settings and kept answers; [`web`] of the pages; [`guardian`] of watching settings and of the desktop; [`sandbox`] of
//! bwrap and seccomp; [`process`] of starting programs; [`paths`] of the file layout; [`policy`] of allow and deny;
//! [`kernel`] of `unsafe`.
//! `tests/it/architecture.rs` checks the table, the owners and the sizes.
//!
//! # Invariants
//!
//! 1. No byte leaves a sandbox without a [`policy::Permit`]: its fields are private, it can't be cloned, and dialling
//!    consumes it.
//! 2. Deny beats allow; an empty list allows nothing (laws in `policy`); an unknown key is an error (`config`).
//! 3. A sandbox can't reach the control socket or the page: it has its own network name space and mounts, the page's
//!    port is one of those that no pin leads to, and the control key and the page's sessions are other types than a
//!    sandbox's token ([`token::ControlKey`], [`token::PlainToken`]).
//! 4. What lies in the project narrows only: in this version nothing in the project is read as configuration.
//! 5. No read-write mount contains what Cloister reads, its own binary included ([`project::Project::find`]); what was
//!    checked is what is mounted ([`init::Anchor`]), and no repository chooses another's place ([`git::Repository`]).
//! 6. What the project's git would execute or obey is read-only inside, also when absent ([`git::Repository::guards`]),
//!    and so is what editors and agents execute ([`files::protect()`]); `stop` names what else has changed
//!    ([`files::Baseline`]).
//! 7. When the guardian, the settings or the audit log fail, traffic stops ([`proxy::Journal`] is asked first); what a
//!    replaced guardian still carries ends with the one that writes its records.
//! 8. Secrets stand in no argument list, log or error: a token reaches the first process through a pipe, and the
//!    disk as a hash.
//! 9. Text from a sandbox is shown escaped ([`text::Untrusted`], [`text::Quoted`]); bytes from a first process are
//!    frames with a largest size ([`init::wire`]).
//! 10. Tokens, instances, running sandboxes and kept answers belong to a project's path ([`name::ProjectId`],
//!     [`config::Owner`]), never to a name alone.

pub mod approval;
pub mod audit;
pub mod cli;
pub mod config;
pub mod files;
pub mod git;
pub mod guardian;
pub mod init;
pub mod kernel;
pub mod name;
pub mod paths;
pub mod policy;
pub mod process;
pub mod project;
pub mod proxy;
pub mod sandbox;
pub mod session;
pub mod text;
pub mod token;
pub mod web;
