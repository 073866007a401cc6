//! Files that are full: the chain goes on, whatever is cut short, and nothing is read twice or never.

use super::*;

const SMALL: Storage = Storage { per_cloister: true, max_bytes: 2000, max_files: 3 };

fn open(place: &Place, storage: Storage) -> AuditLog {
    AuditLog::open(&place.dir(), storage).unwrap()
}

fn full_files(place: &Place) -> Vec<PathBuf> {
    let full = super::super::chain::ChainFiles::of(&place.unified()).list_full().unwrap();
    full.into_iter().map(|file| file.path).collect()
}

#[track_caller]
fn check_good(place: &Place) -> Verified {
    let reports = verify_all(&place.dir(), None, Writer::Steady).unwrap();
    for report in &reports {
        assert!(report.outcome.is_ok(), "{:?}", report.outcome);
    }
    *reports[0].outcome.as_ref().unwrap()
}

#[test]
fn a_full_file_gets_its_name_and_the_chain_goes_on() {
    let place = Place::new();
    let log = open(&place, Storage { max_files: 1000, ..SMALL });
    fill(&log, 100);
    let head = log.head().unwrap();
    drop(log);
    let full = full_files(&place);
    assert!(full.len() > 5, "{full:?}");
    assert_eq!(full[0], place.dir().join("audit@000000000001.jsonl"));
    for file in &full {
        assert!(fs::metadata(file).unwrap().len() <= SMALL.max_bytes, "{file:?}");
    }
    let verified = verify(&place.unified(), Some(head)).unwrap();
    assert_eq!((verified.records, verified.oldest, verified.head), (100, 1, head));
    let _ = check_good(&place);
    let numbers: Vec<u64> = place.entries(Filter::default()).iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (1..=100).collect::<Vec<u64>>());
}

#[test]
fn a17_what_rotation_removed_is_told_from_what_somebody_removed() {
    let place = Place::new();
    let log = open(&place, SMALL);
    fill(&log, 100);
    let early = verify(&full_files(&place)[0], None);
    assert!(early.is_err(), "one file alone is no chain");
    drop(log);
    assert_eq!(full_files(&place).len(), 3);
    let verified = check_good(&place);
    assert!(verified.oldest > 1);
    let removals = Filter { events: vec![Event::AuditRemoved], ..Filter::default() };
    assert!(place.entries(removals).last().unwrap().removed.unwrap().seq == verified.oldest - 1);
    let gone = Head { seq: 1, hash: LineHash::START };
    assert!(matches!(verify(&place.unified(), Some(gone)), Err(VerifyError::Removed { expected: 1, .. })));
    let older = verified.oldest;
    let expected = verify(&place.unified(), None).unwrap().head;
    assert_eq!(verify(&place.unified(), Some(expected)).unwrap().removed_since, None);
    let kept = place.entries(Filter::default()).into_iter().find(|entry| entry.seq == older + 1).unwrap();
    let kept = Head { seq: older, hash: kept.prev };
    assert_eq!(verify(&place.unified(), Some(kept)).unwrap().removed_since, Some(older - 1));
    for number in 0..3 {
        let file = &full_files(&place)[number];
        let content = fs::read(file).unwrap();
        fs::remove_file(file).unwrap();
        let error = verify(&place.unified(), None).unwrap_err();
        assert!(matches!(error, VerifyError::BadLine { problem: Problem::Missing { .. }, .. }), "{error}");
        fs::write(file, content).unwrap();
    }
}

#[test]
fn a_rotation_that_a_crash_cut_short_is_done_again() {
    let place = Place::new();
    let storage = Storage { max_files: 100, ..SMALL };
    fill(&open(&place, storage), 30);
    let (current, first) = (place.unified(), full_files(&place).len());
    let next = {
        let seq = super::super::chain::first_link(&current).unwrap().unwrap().seq;
        place.dir().join(format!("audit@{seq:012}.jsonl"))
    };
    let crashes: [(&str, &dyn Fn()); 4] = [
        ("between rename and create", &|| ()),
        ("before the first record", &|| fs::write(&current, "").unwrap()),
        ("in the first record", &|| fs::write(&current, "{\"seq\":3").unwrap()),
        ("in the first record's zeros", &|| fs::write(&current, [0; 100]).unwrap()),
    ];
    let good = fs::read(&current).unwrap();
    for (what, crash) in crashes {
        fs::rename(&current, &next).unwrap();
        crash();
        assert_eq!(place.entries(Filter::default()).len(), 30, "{what}");
        fill(&open(&place, storage), 1);
        let verified = verify(&current, None).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(verified.records, 31 + verified.recoveries, "{what}");
        full_files(&place).into_iter().skip(first).for_each(|file| fs::remove_file(file).unwrap());
        fs::write(&current, &good).unwrap();
    }
}

#[test]
fn a_removal_that_a_crash_cut_short_is_good_and_done_again() {
    let place = Place::new();
    let storage = Storage { max_files: 100, ..SMALL };
    fill(&open(&place, storage), 60);
    let kept: Vec<_> = full_files(&place).into_iter().map(|file| (fs::read(&file).unwrap(), file)).collect();
    fill(&open(&place, SMALL), 1);
    assert_eq!(full_files(&place).len(), 3);
    for (content, file) in kept.iter().rev().skip(3) {
        fs::write(file, content).unwrap();
        assert!(verify(&place.unified(), None).is_ok(), "the log tells of {file:?}, which is still there");
    }
    fill(&open(&place, SMALL), 1);
    assert_eq!(full_files(&place).len(), 3);
    let _ = check_good(&place);
}

#[test]
fn the_next_start_takes_another_size() {
    let place = Place::new();
    for max_bytes in [1 << 20, 1000, 5000, 600, 1 << 20] {
        fill(&open(&place, Storage { max_bytes, max_files: 50, ..SMALL }), 20);
    }
    assert_eq!(check_good(&place).records, 100);
}

#[test]
fn a_reader_follows_over_rotations_and_starts() {
    let place = Place::new();
    let storage = Storage { max_files: 100, ..SMALL };
    let mut log = open(&place, storage);
    fill(&log, 1);
    let mut reader = Reader::open(&place.unified(), Filter::default()).unwrap();
    let mut seen = Vec::new();
    for round in 0..30 {
        fill(&log, round % 9);
        if round % 3 != 1 {
            seen.extend(reader.by_ref().map(|entry| entry.unwrap().seq));
        }
        if round % 7 == 6 {
            drop(log);
            let seq = super::super::chain::first_link(&place.unified()).unwrap().unwrap().seq;
            fs::rename(place.unified(), place.dir().join(format!("audit@{seq:012}.jsonl"))).unwrap();
            if round % 2 == 0 {
                seen.extend(reader.by_ref().map(|entry| entry.unwrap().seq));
            }
            log = open(&place, storage);
        }
    }
    seen.extend(reader.map(|entry| entry.unwrap().seq));
    assert_eq!(seen, (1..=log.head().unwrap().seq).collect::<Vec<_>>());
}

#[test]
fn a_reader_that_looks_from_a_time_on_leaves_out_what_is_older() {
    let place = Place::new();
    let log = open(&place, Storage { max_files: 100, ..SMALL });
    fill(&log, 50);
    let all = place.entries(Filter::default());
    for from in [&all[0], &all[20], &all[49]] {
        let filter = Filter { since: Some(from.time), ..Filter::default() };
        let expected: Vec<_> = all.iter().filter(|entry| entry.time >= from.time).cloned().collect();
        assert_eq!(place.entries(filter), expected);
    }
}

#[test]
fn a_name_that_is_taken_stops_the_log_and_nothing_is_replaced() {
    let place = Place::new();
    let log = open(&place, SMALL);
    let taken = place.dir().join("audit@000000000001.jsonl");
    fs::write(&taken, "mine").unwrap();
    let error = (0..100).find_map(|_| log.append(allowed("demo")).err()).unwrap();
    assert!(matches!(error, AuditError::Open { .. }), "{error}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.ends_with("move it away"), "{cause}");
    assert_eq!(fs::read(&taken).unwrap(), b"mine");
    fs::remove_file(&taken).unwrap();
    fill(&log, 10);
    drop(log);
    let _ = check_good(&place);
}

#[test]
fn a_copy_that_can_not_go_on_in_a_next_file_is_not_lost() {
    let place = Place::new();
    let log = open(&place, Storage { max_files: 100, ..SMALL });
    fill(&log, 1);
    let taken = place.dir().join("cloisters/demo@000000000001.jsonl");
    fs::write(&taken, "mine").unwrap();
    let error = (0..100).find_map(|_| log.append(allowed("demo")).err()).unwrap();
    assert!(matches!(error, AuditError::Open { .. }), "{error}");
    let head = log.head().unwrap();
    assert!(log.enter(allowed("demo")).is_err());
    assert_eq!(log.head().unwrap(), head, "what was refused is in none of the files");
    let closed = || Record::new(Event::ProxyClose).cloister(&cloister("demo")).bytes(1, 1);
    (0..10).for_each(|_| log.append(closed()).unwrap());
    fs::remove_file(&taken).unwrap();
    fill(&log, 10);
    drop(log);
    let _ = check_good(&place);
    let ends = Filter { events: vec![Event::ProxyClose], ..Filter::default() };
    let own = cloister_file(&place.dir(), &cloister("demo"));
    assert_eq!(Reader::open(&own, ends).unwrap().count(), 10);
}

/// The process is killed while it writes: whatever it was doing, the next one goes on.
#[test]
fn a17_a_killed_writer_leaves_a_log_that_goes_on_and_is_good() {
    const INSIDE: &str = "CLOISTER_TEST_KILLED_WRITER";
    let storage = Storage { max_bytes: 20_000, max_files: 4, ..SMALL };
    if let Some(dir) = std::env::var_os(INSIDE) {
        let log = AuditLog::open(Path::new(&dir), storage).unwrap();
        for number in 0_u64.. {
            let name = ["one", "two", "three"][(number % 3) as usize];
            log.append(allowed(name)).unwrap();
            log.append(Record::new(Event::ProxyClose).cloister(&cloister(name)).bytes(number, 1)).unwrap();
        }
    }
    let place = Place::new();
    let mut last = 0;
    for round in 0..10 {
        #[expect(clippy::disallowed_methods, reason = "the test starts itself")]
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "audit::tests::rotation::a17_a_killed_writer_leaves_a_log_that_goes_on_and_is_good",
            ])
            .env(INSIDE, place.dir())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let wanted = last + 10 * round;
        loop {
            let written = super::super::chain::first_link(&place.unified());
            let seq = written.ok().flatten().map_or(0, |link| link.seq);
            if seq > wanted || child.try_wait().unwrap().is_some() {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let before = verify(&place.unified(), None);
        drop(AuditLog::open(&place.dir(), storage).unwrap());
        let verified = check_good(&place);
        assert!(verified.head.seq > last, "{before:?}");
        last = verified.head.seq;
    }
}
