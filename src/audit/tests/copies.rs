//! The cloisters' own files: they follow the unified one, are completed after a crash, and are compared with it.

use super::*;

fn own(place: &Place, name: &str) -> PathBuf {
    cloister_file(&place.dir(), &cloister(name))
}

fn difference(place: &Place, name: &str) -> Option<Difference> {
    let reports = verify_all(&place.dir(), None, Writer::Steady).unwrap();
    match reports.into_iter().find(|report| report.path == own(place, name))?.outcome {
        Err(VerifyError::Differs { difference, .. }) => Some(difference),
        Ok(_) => None,
        Err(other) => panic!("{other}"),
    }
}

fn mixed(place: &Place) {
    let log = place.open();
    for _ in 0..5 {
        fill(&log, 2);
        log.append(allowed("other")).unwrap();
    }
    log.append(Record::new(Event::GuardianStop)).unwrap();
}

#[test]
fn a_copy_names_the_record_that_it_repeats() {
    let place = Place::new();
    mixed(&place);
    let entries: Vec<_> =
        Reader::open(&own(&place, "other"), Filter::default()).unwrap().map(Result::unwrap).collect();
    let numbers: Vec<_> = entries.iter().map(|entry| (entry.seq, entry.unified)).collect();
    assert_eq!(numbers, [(1, Some(3)), (2, Some(6)), (3, Some(9)), (4, Some(12)), (5, Some(15))]);
    let unified = place.entries(Filter { cloister: Some(cloister("other")), ..Filter::default() });
    for (copy, original) in entries.into_iter().zip(unified) {
        assert_eq!(Entry { seq: original.seq, prev: original.prev, unified: None, ..copy }, original);
    }
}

#[test]
fn what_a_crash_kept_from_a_copy_is_completed_at_any_byte() {
    let place = Place::new();
    mixed(&place);
    let whole = fs::read(own(&place, "demo")).unwrap();
    for length in (0..whole.len()).step_by(7) {
        fs::write(own(&place, "demo"), &whole[..length]).unwrap();
        drop(place.open());
        assert_eq!(difference(&place, "demo"), None, "cut at {length}");
        let entries = Reader::open(&own(&place, "demo"), Filter::default()).unwrap().flatten();
        assert_eq!(entries.filter(|entry| entry.event == Event::ProxyAllow).count(), 10, "cut at {length}");
    }
}

#[test]
fn a17_a_removed_cut_or_foreign_copy_is_named() {
    let place = Place::new();
    mixed(&place);
    assert_eq!(difference(&place, "demo"), None);
    let whole = fs::read(own(&place, "demo")).unwrap();
    fs::remove_file(own(&place, "demo")).unwrap();
    assert_eq!(difference(&place, "demo"), Some(Difference::MissingHere { unified: 1 }));
    let third = whole.split_inclusive(|byte| *byte == b'\n').take(3).map(<[u8]>::len).sum();
    fs::write(own(&place, "demo"), &whole[..third]).unwrap();
    assert_eq!(difference(&place, "demo"), Some(Difference::MissingHere { unified: 5 }));
    let foreign = Place::new();
    mixed(&foreign);
    fs::copy(own(&foreign, "demo"), own(&place, "demo")).unwrap();
    assert_eq!(difference(&place, "demo"), Some(Difference::Other { own: 1, unified: 1 }));
    fs::write(own(&place, "demo"), &whole).unwrap();
    let unified = fs::read(place.unified()).unwrap();
    let first = unified.split_inclusive(|byte| *byte == b'\n').take(3).map(<[u8]>::len).sum();
    fs::write(place.unified(), &unified[..first]).unwrap();
    assert_eq!(difference(&place, "demo"), Some(Difference::MissingThere { own: 3, unified: 4 }));
    assert_eq!(difference(&place, "other"), Some(Difference::MissingThere { own: 2, unified: 6 }));
}

#[test]
fn without_own_files_the_record_says_so_and_none_is_missed() {
    let place = Place::new();
    fill(&place.open(), 2);
    fill(&AuditLog::open(&place.dir(), UNIFIED_ONLY).unwrap(), 2);
    fill(&place.open(), 2);
    assert_eq!(difference(&place, "demo"), None);
    let marks: Vec<_> = place.entries(Filter::default()).iter().map(|entry| entry.own_file).collect();
    assert_eq!(marks, [None, None, Some(false), Some(false), None, None]);
    assert_eq!(verify(&own(&place, "demo"), None).unwrap().records, 4);
}

#[test]
fn hundreds_of_cloisters_are_compared() {
    let place = Place::new();
    let log = place.open();
    for round in 0..3 {
        for number in 0..300 {
            let name = format!("c{}", (number * 7 + round) % 300);
            log.append(allowed(&name)).unwrap();
            log.append(Record::new(Event::SandboxStop).cloister(&cloister(&name))).unwrap();
        }
    }
    drop(log);
    let reports = verify_all(&place.dir(), None, Writer::Steady).unwrap();
    assert_eq!(reports.len(), 301);
    assert!(reports.iter().all(|report| report.outcome.is_ok()));
    for name in ["c0", "c150", "c299"] {
        fs::remove_file(own(&place, name)).unwrap();
        assert!(matches!(difference(&place, name), Some(Difference::MissingHere { .. })));
    }
}

#[test]
fn a_tunnel_that_ends_after_its_sandbox_keeps_no_file_open() {
    let place = Place::new();
    let log = place.open();
    let open = || {
        let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let files = files.filter_map(|file| fs::read_link(file.path()).ok());
        files.filter(|file| file.starts_with(place.dir().join("cloisters"))).count()
    };
    let record = |event, name: &str| Record::new(event).cloister(&cloister(name));
    for name in ["one", "two"] {
        log.append(record(Event::SandboxStart, name)).unwrap();
        log.append(record(Event::SandboxStop, name)).unwrap();
        log.append(record(Event::ProxyClose, name)).unwrap();
    }
    log.append(record(Event::SandboxStart, "three")).unwrap();
    // What was written is closed after the next sync.
    (0..2).for_each(|_| log.sync().unwrap());
    assert_eq!(open(), 1);
    log.append(record(Event::ProxyClose, "one")).unwrap();
    log.append(record(Event::ProxyClose, "three")).unwrap();
    (0..2).for_each(|_| log.sync().unwrap());
    assert_eq!(open(), 1);
    drop(log);
    assert!(
        verify_all(&place.dir(), None, Writer::Steady).unwrap().iter().all(|report| report.outcome.is_ok())
    );
}

#[test]
fn a_flood_is_one_record_and_a_summary_at_the_end() {
    let place = Place::new();
    let log = place.open();
    let demo = cloister("demo");
    let deny = |host: &str| {
        let what = Repeatable {
            cloister: &demo,
            event: Event::ProxyDeny,
            reason: "not_allowed",
            subject: Some(&host),
        };
        log.append_repeatable(what, || {
            Record::new(Event::ProxyDeny).cloister(&demo).host(host).reason("not_allowed")
        })
    };
    for _ in 0..1000 {
        deny("a.test").unwrap();
        deny("b.test").unwrap();
    }
    assert_eq!(log.head().unwrap().seq, 2);
    log.append(Record::new(Event::SandboxStop).cloister(&demo)).unwrap();
    let entries = place.entries(Filter::default());
    let told: Vec<_> = entries.iter().map(|entry| (entry.event, entry.repeated)).collect();
    let summary = (Event::ProxyDeny, Some(999));
    let first = (Event::ProxyDeny, None);
    assert_eq!(told, [first, first, summary, summary, (Event::SandboxStop, None)]);
    assert!(entries[2].from.unwrap() >= entries[0].time && entries[2].to.unwrap() <= entries[2].time);
    for _ in 0..5 {
        deny("a.test").unwrap();
    }
    drop(log);
    assert_eq!(place.entries(Filter::default()).last().unwrap().repeated, Some(4));
    assert!(
        verify_all(&place.dir(), None, Writer::Steady).unwrap().iter().all(|report| report.outcome.is_ok())
    );
}
