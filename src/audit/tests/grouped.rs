//! Records that are entered one by one and written together, and what becomes of them when nothing can be written.

use super::*;

/// Runs a test in a process of its own, where what goes beyond a file size limit fails as on a full disk: the limit's
/// signal has to be ignored before the program starts.
pub(super) fn on_small_disk(test: &str, inside: impl FnOnce()) {
    const INSIDE: &str = "CLOISTER_TEST_FULL_DISK";
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    #[expect(clippy::disallowed_methods, reason = "the test starts itself")]
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -S -f 16; exec \"$0\" --exact --nocapture \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}{stderr}");
}

/// Appends until the disk is full; gives how many records there are then.
pub(super) fn fill_disk(log: &AuditLog) -> u64 {
    for written in 0.. {
        if let Err(error) = log.append(allowed("demo").detail("x".repeat(written))) {
            assert!(matches!(error, AuditError::Write { .. }), "{error}");
            return written as u64;
        }
    }
    unreachable!()
}

pub(super) fn make_room_on_disk() {
    let unlimited = rustix::process::getrlimit(rustix::process::Resource::Fsize).maximum;
    let limit = rustix::process::Rlimit { current: unlimited, maximum: unlimited };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
}

fn closed(name: &str) -> Record {
    Record::new(Event::ProxyClose).cloister(&cloister(name)).bytes(1, 2).detail("x".repeat(400))
}

/// How many records of this event there are, in the unified file and in the cloister's own one.
fn count(place: &Place, event: Event) -> [usize; 2] {
    let filter = || Filter { events: vec![event], ..Filter::default() };
    let own = cloister_file(&place.dir(), &cloister("demo"));
    [place.unified(), own].map(|path| {
        let entries: Vec<_> = Reader::open(&path, filter()).unwrap().collect();
        assert!(entries.iter().all(Result::is_ok), "{path:?}");
        entries.len()
    })
}

#[track_caller]
fn check_good(place: &Place) {
    for report in verify_all(&place.dir(), None, Writer::Steady).unwrap() {
        assert!(report.outcome.is_ok(), "{:?}", report.outcome);
    }
}

#[test]
fn a7_what_was_entered_is_in_the_file_when_it_is_settled() {
    let place = Place::new();
    let log = place.open();
    for round in 1..=20 {
        let entered = [(); 3].map(|()| log.enter(allowed("demo")).unwrap());
        assert_eq!(entered, [3 * round - 2, 3 * round - 1, 3 * round]);
        log.settle(entered[1]).unwrap();
        // All of them were written together, and the others have nothing left to do.
        let written = fs::read_to_string(place.unified()).unwrap();
        assert_eq!(written.lines().count() as u64, entered[2]);
        log.settle(entered[0]).unwrap();
        log.settle(entered[2]).unwrap();
        assert_eq!(fs::read_to_string(place.unified()).unwrap(), written);
    }
    drop(log);
    assert_eq!(count(&place, Event::ProxyAllow), [60, 60]);
    check_good(&place);
}

#[test]
fn a7_threads_enter_and_settle_one_unbroken_chain() {
    let place = Place::new();
    let log = place.open();
    thread::scope(|scope| {
        for name in ["one", "two", "three"] {
            let (log, place) = (&log, &place);
            scope.spawn(move || {
                for _ in 0..200 {
                    let seq = log.enter(allowed(name)).unwrap();
                    log.settle(seq).unwrap();
                    let text = fs::read_to_string(place.unified()).unwrap();
                    assert!(text.lines().count() as u64 >= seq);
                    log.append(closed(name)).unwrap();
                }
            });
        }
    });
    drop(log);
    check_good(&place);
}

#[test]
fn a7_a_log_that_is_closed_has_written_what_was_entered() {
    let place = Place::new();
    let log = place.open();
    let entered = log.enter(allowed("demo")).unwrap();
    assert_eq!(log.close().unwrap().seq, entered);
    assert_eq!(count(&place, Event::ProxyAllow), [1, 1]);
    let log = place.open();
    log.enter(allowed("demo")).unwrap();
    drop(log);
    assert_eq!(count(&place, Event::ProxyAllow), [2, 2]);
    check_good(&place);
}

#[test]
fn a7_a_write_that_fails_is_told_to_all_that_were_entered_and_nothing_is_lost() {
    let name =
        "audit::tests::grouped::a7_a_write_that_fails_is_told_to_all_that_were_entered_and_nothing_is_lost";
    on_small_disk(name, || {
        let place = Place::new();
        let log = place.open();
        let mut written = 0;
        let entered = loop {
            let seq = log.enter(allowed("demo").detail("x".repeat(400))).unwrap();
            match log.settle(seq) {
                Ok(()) => written += 1,
                Err(error) => {
                    assert!(matches!(error, AuditError::Write { .. }), "{error}");
                    break seq;
                }
            }
        };
        assert!(log.enter(allowed("demo")).is_err());
        assert!(log.append(allowed("demo")).is_err());
        for _ in 0..3 {
            assert!(log.settle(entered).is_err());
        }
        assert_eq!(count(&place, Event::ProxyAllow)[0], written);
        log.settle(entered - 1).unwrap();
        // It did not pass, and its end says so.
        log.append(closed("demo")).unwrap();
        make_room_on_disk();
        log.settle(entered).unwrap();
        let later = log.enter(allowed("demo")).unwrap();
        assert_eq!(later, entered + 2);
        log.settle(later).unwrap();
        drop(log);
        assert_eq!(count(&place, Event::ProxyAllow), [written + 2; 2]);
        assert_eq!(count(&place, Event::ProxyClose), [1; 2]);
        check_good(&place);
    });
}

#[test]
fn a7_several_that_were_entered_before_the_disk_was_full_all_fail() {
    let name = "audit::tests::grouped::a7_several_that_were_entered_before_the_disk_was_full_all_fail";
    on_small_disk(name, || {
        let place = Place::new();
        let log = place.open();
        let written = usize::try_from(fill_disk(&log)).unwrap();
        // What waits is ended by the first that can't be written.
        make_room_on_disk();
        log.append(allowed("demo")).unwrap();
        let length = fs::metadata(place.unified()).unwrap().len();
        let unlimited = rustix::process::getrlimit(rustix::process::Resource::Fsize).maximum;
        let full = rustix::process::Rlimit { current: Some(length), maximum: unlimited };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, full).unwrap();
        // The keeper may find out first.
        let entered: Vec<_> = (0..5).map_while(|_| log.enter(allowed("demo")).ok()).collect();
        assert!(!entered.is_empty());
        for seq in &entered {
            assert!(log.settle(*seq).is_err());
            log.append(closed("demo")).unwrap();
        }
        assert_eq!(count(&place, Event::ProxyAllow)[0], written + 1);
        make_room_on_disk();
        log.sync().unwrap();
        for seq in &entered {
            log.settle(*seq).unwrap();
        }
        assert_eq!(count(&place, Event::ProxyAllow), [written + 1 + entered.len(); 2]);
        assert_eq!(count(&place, Event::ProxyClose), [entered.len(); 2]);
        drop(log);
        check_good(&place);
    });
}

#[test]
fn a7_the_ends_of_many_tunnels_outlast_a_full_disk() {
    on_small_disk("audit::tests::grouped::a7_the_ends_of_many_tunnels_outlast_a_full_disk", || {
        let place = Place::new();
        let log = place.open();
        fill_disk(&log);
        (0..300).for_each(|_| log.append(closed("demo")).unwrap());
        make_room_on_disk();
        fill(&log, 10);
        drop(log);
        assert_eq!(count(&place, Event::ProxyClose), [300; 2]);
        check_good(&place);
    });
}
