//! Own files whose end a kill or a full disk keeps back: what is excused, what is not, and what the next guardian does.

use super::*;
use crate::audit::chain::ChainFiles;
use crate::audit::log::WINDOW_BYTES;

fn own(place: &Place) -> PathBuf {
    cloister_file(&place.dir(), &cloister("demo"))
}

/// How far the own file is behind, or how it differs.
#[track_caller]
fn behind(place: &Place, writer: Writer) -> Result<u64, Difference> {
    let reports = verify_all(&place.dir(), None, writer).unwrap();
    match reports.into_iter().find(|report| report.path == own(place)).unwrap().outcome {
        Ok(verified) => Ok(verified.behind),
        Err(VerifyError::Differs { difference, .. }) => Err(difference),
        Err(other) => panic!("{other}"),
    }
}

/// Leaves so many lines of the own file.
fn cut(place: &Place, whole: &str, lines: usize) {
    let text: String = whole.split_inclusive('\n').take(lines).collect();
    fs::write(own(place), text).unwrap();
}

#[test]
fn a17_an_own_file_that_a_kill_left_behind_is_counted_and_completed() {
    let place = Place::new();
    fill(&place.open(), 10);
    let whole = fs::read_to_string(own(&place)).unwrap();
    for lines in [0, 4, 9, 10] {
        cut(&place, &whole, lines);
        assert_eq!(behind(&place, Writer::Steady), Ok(10 - lines as u64));
        drop(place.open());
        assert_eq!(fs::read_to_string(own(&place)).unwrap(), whole);
    }
}

#[test]
fn a17_what_a_kill_does_not_leave_is_no_end_that_is_behind() {
    let place = Place::new();
    fill(&place.open(), 10);
    let whole = fs::read_to_string(own(&place)).unwrap();
    let missing = |unified| Err(Difference::MissingHere { unified });
    // More follows behind what is missing.
    let good = whole.replace(r#""unified":5"#, r#""unified":6"#);
    cut(&place, &good, 5);
    assert_eq!(behind(&place, Writer::Steady), missing(5));
    fs::remove_file(own(&place)).unwrap();
    assert_eq!(behind(&place, Writer::Steady), missing(1));
    // The unified chain is no longer what vouches for the missing records.
    cut(&place, &whole, 4);
    let unified = fs::read_to_string(place.unified()).unwrap();
    fs::write(place.unified(), unified.replace(r#""detail":"8""#, r#""detail":"9""#)).unwrap();
    assert_eq!(behind(&place, Writer::Steady), missing(5));
    assert!(verify(&place.unified(), None).is_err());
}

#[test]
fn a17_an_end_that_is_cut_off_is_found_when_the_log_was_closed_in_order_or_is_written() {
    let place = Place::new();
    let log = place.open();
    fill(&log, 10);
    log.sync().unwrap();
    let whole = fs::read_to_string(own(&place)).unwrap();
    cut(&place, &whole, 9);
    let missing = Err(Difference::MissingHere { unified: 10 });
    assert_eq!(behind(&place, Writer::Steady), missing);
    assert!(!log.sync().unwrap_err().may_pass(), "the guardian does not call that failing");
    assert_eq!(behind(&place, Writer::Failing), Ok(1));
    drop(log);
    let log = place.open();
    log.append(Record::new(Event::GuardianStop)).unwrap();
    drop(log);
    cut(&place, &whole, 9);
    assert_eq!(behind(&place, Writer::Steady), missing);
    assert_eq!(behind(&place, Writer::Failing), missing, "nobody is there to say so");
}

#[test]
fn a17_more_than_the_next_guardian_copies_is_never_excused() {
    for max_bytes in [1 << 30, 200_000] {
        let place = Place::new();
        let log = AuditLog::open(&place.dir(), Storage { max_bytes, max_files: 99, ..STORAGE }).unwrap();
        (0..600).for_each(|_| log.append(allowed("other").detail("x".repeat(4000))).unwrap());
        drop(log);
        let dir = place.dir();
        let files: Vec<_> = ChainFiles::of(&place.unified()).list_full().unwrap();
        let files = files.into_iter().map(|file| file.path).chain([place.unified()]);
        let text: String = files.map(|path| fs::read_to_string(path).unwrap()).collect();
        let starts: Vec<usize> = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .filter(|start| (text.len() - start) as u64 <= WINDOW_BYTES)
            .collect();
        let copied = starts.len() - 1;
        assert!((100..500).contains(&copied));
        // The own file gets another form: all in one file.
        let own = cloister_file(&dir, &cloister("other"));
        let full: Vec<_> = ChainFiles::of(&own).list_full().unwrap();
        let paths = full.iter().map(|file| file.path.clone()).chain([own.clone()]);
        let whole: String = paths.map(|path| fs::read_to_string(path).unwrap()).collect();
        for file in &full {
            fs::remove_file(&file.path).unwrap();
        }
        let outcome = |lines: usize| {
            fs::write(&own, whole.split_inclusive('\n').take(lines).collect::<String>()).unwrap();
            let reports = verify_all(&dir, None, Writer::Steady).unwrap();
            reports.into_iter().find(|report| report.path == own).unwrap().outcome
        };
        let first = 600 - copied;
        assert!(matches!(
            outcome(first - 1),
            Err(VerifyError::Differs { difference: Difference::MissingHere { unified }, .. })
                if unified == first as u64
        ));
        assert_eq!(outcome(first).unwrap().behind, copied as u64);
        drop(place.open());
        assert_eq!(fs::read_to_string(&own).unwrap(), whole);
    }
}

#[test]
fn a7_of_an_own_file_the_lines_that_had_room_stay_on_a_full_disk() {
    let name = "audit::tests::behind::a7_of_an_own_file_the_lines_that_had_room_stay_on_a_full_disk";
    on_small_disk(name, || {
        let place = Place::new();
        let log = place.open();
        let written = fill_disk(&log);
        assert!(log.sync().unwrap_err().may_pass());
        let own_lines = fs::read_to_string(own(&place)).unwrap();
        assert!(own_lines.ends_with('\n') && own_lines.len() > 6000, "{}", own_lines.len());
        let lines = own_lines.lines().count() as u64;
        assert_eq!(behind(&place, Writer::Failing), Ok(written - lines));
        make_room_on_disk();
        drop(log);
        assert_eq!(behind(&place, Writer::Steady), Ok(0));
        assert_eq!(verify(&own(&place), None).unwrap().records, written);
    });
}

#[test]
fn a7_the_log_is_not_closed_in_order_before_its_copies_are_written() {
    let name = "audit::tests::behind::a7_the_log_is_not_closed_in_order_before_its_copies_are_written";
    on_small_disk(name, || {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current.unwrap();
        let place = Place::new();
        let log = place.open();
        let mut length = 0;
        while length + 450 < limit {
            fill(&log, 1);
            length = fs::metadata(place.unified()).unwrap().len();
        }
        // There is room for the record, but not for the copies, which are longer.
        let error = log.append(Record::new(Event::GuardianStop)).unwrap_err();
        assert!(matches!(&error, AuditError::Write { path, .. } if *path == own(&place)), "{error}");
        make_room_on_disk();
        log.append(Record::new(Event::GuardianStop)).unwrap();
        drop(log);
        assert_eq!(behind(&place, Writer::Steady), Ok(0));
        assert!(verify(&place.unified(), None).unwrap().is_closed);
    });
}

#[test]
fn a7_no_copy_is_written_before_what_it_repeats() {
    on_small_disk("audit::tests::behind::a7_no_copy_is_written_before_what_it_repeats", || {
        let place = Place::new();
        let log = place.open();
        fill(&log, 1);
        log.sync().unwrap();
        // The unified file alone has no room.
        while log.append(Record::new(Event::ConfigTrust).detail("x".repeat(100))).is_ok() {}
        let before = fs::read(own(&place)).unwrap();
        log.append(Record::new(Event::ProxyClose).cloister(&cloister("demo")).detail("x".repeat(400)))
            .unwrap();
        assert!(log.sync().is_err());
        assert_eq!(fs::read(own(&place)).unwrap(), before);
        make_room_on_disk();
        drop(log);
        assert_eq!(behind(&place, Writer::Steady), Ok(0));
    });
}
