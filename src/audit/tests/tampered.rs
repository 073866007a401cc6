//! What somebody does to whole files, and what a running guardian does to them meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const SMALL: Storage = Storage { per_cloister: true, max_bytes: 50_000, max_files: 2 };

fn own(place: &Place) -> PathBuf {
    cloister_file(&place.dir(), &cloister("demo"))
}

#[track_caller]
fn outcome(place: &Place, path: &Path) -> Result<Verified, VerifyError> {
    let reports = verify_all(&place.dir(), None, Writer::Steady).unwrap();
    reports.into_iter().find(|report| report.path == path).unwrap().outcome
}

#[track_caller]
fn difference(place: &Place) -> Difference {
    match outcome(place, &own(place)) {
        Err(VerifyError::Differs { difference, .. }) => difference,
        other => panic!("{other:?}"),
    }
}

/// Writes the own file's chain anew, with each record as `change` makes it from its number and its line.
fn forge(place: &Place, change: impl Fn(u64, String) -> String) {
    let mut prev = LineHash::START.to_string();
    let mut forged = String::new();
    for (line, seq) in fs::read_to_string(own(place)).unwrap().lines().zip(1..) {
        let (front, rest) = line.split_once(r#""prev":""#).unwrap();
        let line = change(seq, format!(r#"{front}"prev":"{prev}{}"#, &rest[64..]));
        prev = LineHash::of(line.as_bytes()).to_string();
        forged.push_str(&line);
        forged.push('\n');
    }
    fs::write(own(place), forged).unwrap();
}

fn without_number(line: &str) -> String {
    let (front, rest) = line.split_once(r#","unified":"#).unwrap();
    front.to_owned() + rest.trim_start_matches(|digit: char| digit.is_ascii_digit())
}

#[test]
fn a17_a_removed_unified_file_is_missed_whatever_else_is_left() {
    let place = Place::new();
    assert!(!exists(&place.dir()));
    fill(&place.open(), 3);
    fs::remove_file(place.unified()).unwrap();
    let lock = place.dir().join("audit.lock");
    let is_gone = || {
        let outcome = outcome(&place, &place.unified());
        assert!(exists(&place.dir()));
        matches!(&outcome, Err(VerifyError::Gone { path }) if *path == place.unified())
            && matches!(verify(&place.unified(), None), Err(VerifyError::Gone { .. }))
    };
    assert!(is_gone(), "with the lock and an own file");
    fs::remove_file(&lock).unwrap();
    assert!(is_gone(), "with an own file");
    fs::remove_dir_all(place.dir().join(CLOISTERS_FOLDER)).unwrap();
    assert!(!exists(&place.dir()));
    fs::write(&lock, "").unwrap();
    assert!(is_gone(), "with the lock");
}

#[test]
fn a17_a_removed_unified_file_is_missed_behind_full_ones() {
    let place = Place::new();
    fill(&AuditLog::open(&place.dir(), SMALL).unwrap(), 400);
    fs::remove_file(place.unified()).unwrap();
    fs::remove_file(place.dir().join("audit.lock")).unwrap();
    assert!(exists(&place.dir()));
    assert!(matches!(outcome(&place, &place.unified()), Err(VerifyError::Gone { .. })));
}

#[test]
fn a17_copies_that_do_not_name_their_record_are_no_way_around_the_comparison() {
    let place = Place::new();
    fill(&place.open(), 6);
    let good = fs::read(own(&place)).unwrap();
    forge(&place, |_, line| line);
    assert_eq!(fs::read(own(&place)).unwrap(), good);
    forge(&place, |seq, line| if seq > 4 { without_number(&line) } else { line });
    assert!(verify(&own(&place), None).is_ok(), "the chain itself is good");
    assert_eq!(difference(&place), Difference::Unnamed { own: 5 });
    fs::write(own(&place), &good).unwrap();
    forge(&place, |_, line| without_number(&line).replace("example.com", "evil.test"));
    assert_eq!(difference(&place), Difference::Unnamed { own: 1 });
}

#[test]
fn a17_a_copy_of_what_never_was_is_found_while_the_guardian_writes() {
    let place = Place::new();
    let log = place.open();
    fill(&log, 6);
    log.sync().unwrap();
    forge(&place, |seq, line| line.replace(r#""unified":6"#, &format!(r#""unified":{}"#, seq + 1_000_000)));
    // Record 6 has no copy, and the copy has no record: each alone is enough.
    assert!(matches!(difference(&place), Difference::MissingHere { unified: 6 }));
    forge(&place, |_, line| line.replace(r#""unified":1000006"#, r#""unified":6"#));
    let mut file = OpenOptions::new().append(true).open(own(&place)).unwrap();
    let head = verify(&own(&place), None).unwrap().head;
    let line = fs::read_to_string(own(&place)).unwrap().lines().last().unwrap().to_owned();
    let (_, event) = line.split_once(r#","event""#).unwrap();
    let time = &line[17..44];
    writeln!(file, r#"{{"seq":7,"time":"{time}","prev":"{}","unified":999,"event"{event}"#, head.hash)
        .unwrap();
    assert_eq!(difference(&place), Difference::MissingThere { own: 7, unified: 999 });
}

#[test]
fn what_rotation_removes_meanwhile_is_no_false_alarm() {
    let place = Place::new();
    let log = AuditLog::open(&place.dir(), SMALL).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                fill(&log, 10);
            }
        });
        let all = [(); 3].map(|()| verify_all(&place.dir(), None, Writer::Steady));
        is_over.store(true, Ordering::Relaxed);
        for report in all.into_iter().flat_map(Result::unwrap) {
            assert!(report.outcome.is_ok(), "{:?}", report.outcome);
        }
    });
}

#[test]
fn a_file_that_can_not_be_read_is_no_silent_end_of_the_comparison() {
    let place = Place::new();
    fill(&place.open(), 3);
    // A folder opens like a file and fails when it is read.
    fs::remove_file(own(&place)).unwrap();
    fs::create_dir(own(&place)).unwrap();
    assert!(matches!(outcome(&place, &own(&place)), Err(VerifyError::Read { .. })));
    assert!(outcome(&place, &place.unified()).is_ok());
}

#[test]
fn while_a_guardian_writes_a_line_on_its_way_is_no_torn_one() {
    let place = Place::new();
    let log = place.open();
    fill(&log, 3);
    OpenOptions::new().append(true).open(place.unified()).unwrap().write_all(b"{\"seq\":4,").unwrap();
    assert_eq!(verify(&place.unified(), None).unwrap().head.seq, 3);
    drop(log);
    assert!(matches!(
        verify(&place.unified(), None),
        Err(VerifyError::BadLine { problem: Problem::Torn, .. })
    ));
}

#[test]
fn a_copy_that_a_slow_disk_keeps_back_is_waited_for() {
    let place = Place::new();
    let log = place.open();
    fill(&log, 2);
    log.append(Record::new(Event::GuardianStop)).unwrap();
    drop(log);
    let own = cloister_file(&place.dir(), &cloister("demo"));
    let whole = fs::read(&own).unwrap();
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    fs::write(&own, &whole[..first]).unwrap();
    let missing = |reports: Vec<FileReport>| reports.iter().any(|report| report.outcome.is_err());
    assert!(missing(verify_all(&place.dir(), None, Writer::Steady).unwrap()));
    // As the lock of a guardian that writes.
    let lock = fs::File::open(place.dir().join("audit.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    thread::scope(|scope| {
        let late = scope.spawn(|| {
            thread::sleep(Duration::from_millis(1200));
            fs::write(&own, &whole).unwrap();
        });
        assert!(!missing(verify_all(&place.dir(), None, Writer::Steady).unwrap()));
        late.join().unwrap();
    });
    fs::write(&own, &whole[..first]).unwrap();
    assert!(
        missing(verify_all(&place.dir(), None, Writer::Steady).unwrap()),
        "what is really missing is told"
    );
}
