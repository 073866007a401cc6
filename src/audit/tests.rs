//! Tests of the log as a whole: write, crash, tamper, read.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::name::{CloisterName, ProjectName};
use grouped::{fill_disk, make_room_on_disk, on_small_disk};

fn cloister(name: &str) -> CloisterName {
    CloisterName::of(&ProjectName::parse(name).unwrap(), None).unwrap()
}

mod behind;
mod copies;
mod grouped;
mod rotation;
mod tampered;

const STORAGE: Storage = Storage { per_cloister: true, max_bytes: 1 << 30, max_files: 8 };
const UNIFIED_ONLY: Storage = Storage { per_cloister: false, ..STORAGE };

/// Is a log in a directory of its own.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn dir(&self) -> PathBuf {
        self.dir.path().join("audit")
    }

    fn unified(&self) -> PathBuf {
        unified_file(&self.dir())
    }

    fn open(&self) -> AuditLog {
        AuditLog::open(&self.dir(), STORAGE).unwrap()
    }

    fn entries(&self, filter: Filter) -> Vec<Entry> {
        Reader::open(&self.unified(), filter).unwrap().filter_map(Result::ok).collect()
    }
}

fn allowed(name: &str) -> Record {
    Record::new(Event::ProxyAllow).cloister(&cloister(name)).host("example.com").port(443)
}

fn fill(log: &AuditLog, records: usize) {
    for number in 0..records {
        log.append(allowed("demo").detail(number)).unwrap();
    }
}

#[test]
fn a_record_is_one_line_with_its_fields_in_order() {
    let place = Place::new();
    let log = place.open();
    let record = allowed("demo").project(&ProjectName::parse("demo").unwrap()).reason("not_allowed");
    log.append(record.bytes(1, 2).duration(Duration::from_secs(3)).exit_code(7).argv(["ls", "-l"])).unwrap();
    let text = fs::read_to_string(place.unified()).unwrap();
    let time = &text[17..44];
    assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    let zeros = "0".repeat(64);
    let expected = format!(
        r#"{{"seq":1,"time":"{time}","prev":"{zeros}","event":"proxy.allow","cloister":"demo","project":"demo","host":"example.com","port":443,"reason":"not_allowed","bytes_up":1,"bytes_down":2,"duration_ms":3000,"argv":["ls","-l"],"exit_code":7}}"#
    );
    assert_eq!(text, expected + "\n");
}

#[test]
fn files_and_directories_are_private() {
    let place = Place::new();
    fs::create_dir(place.dir()).unwrap();
    fs::set_permissions(place.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(place.unified(), "").unwrap();
    fs::set_permissions(place.unified(), fs::Permissions::from_mode(0o644)).unwrap();
    fill(&place.open(), 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&place.dir()), 0o700);
    assert_eq!(mode(&place.dir().join("cloisters")), 0o700);
    assert_eq!(mode(&place.unified()), 0o600);
    assert_eq!(mode(&cloister_file(&place.dir(), &cloister("demo"))), 0o600);
}

#[test]
fn every_file_is_a_chain_of_its_own() {
    let place = Place::new();
    let log = place.open();
    log.append(Record::new(Event::GuardianStart)).unwrap();
    log.append(allowed("one")).unwrap();
    log.append(allowed("two")).unwrap();
    log.append(allowed("one")).unwrap();
    log.sync().unwrap();
    let reports = verify_all(&place.dir(), Some(log.head().unwrap()), Writer::Steady).unwrap();
    let records: Vec<_> = reports
        .iter()
        .map(|report| {
            (report.path.file_name().unwrap().to_str().unwrap(), report.outcome.as_ref().unwrap().records)
        })
        .collect();
    assert_eq!(records, [("audit.jsonl", 4), ("one.jsonl", 2), ("two.jsonl", 1)]);
}

#[test]
fn without_files_per_cloister_only_the_unified_one_is_written() {
    let place = Place::new();
    let log = AuditLog::open(&place.dir(), UNIFIED_ONLY).unwrap();
    fill(&log, 1);
    assert!(!place.dir().join("cloisters").exists());
    assert_eq!(verify_all(&place.dir(), None, Writer::Steady).unwrap().len(), 1);
}

#[test]
fn the_chain_goes_on_after_a_restart() {
    let place = Place::new();
    for _ in 0..3 {
        fill(&place.open(), 100);
    }
    let verified = verify(&place.unified(), None).unwrap();
    assert_eq!((verified.records, verified.recoveries), (300, 0));
    let own = verify(&cloister_file(&place.dir(), &cloister("demo")), None).unwrap();
    assert_eq!(own.records, 300);
}

#[test]
fn a_sandbox_that_is_over_and_starts_again_keeps_its_chain() {
    let place = Place::new();
    let log = place.open();
    for _ in 0..2 {
        fill(&log, 1);
        log.append(Record::new(Event::SandboxStop).cloister(&cloister("demo"))).unwrap();
        log.sync().unwrap();
        log.sync().unwrap();
    }
    assert_eq!(verify(&cloister_file(&place.dir(), &cloister("demo")), None).unwrap().records, 4);
}

#[test]
fn a_second_writer_is_refused() {
    let place = Place::new();
    let first = place.open();
    assert!(matches!(AuditLog::open(&place.dir(), STORAGE), Err(AuditError::Busy { .. })));
    drop(first);
    fill(&place.open(), 1);
}

#[test]
fn threads_append_to_one_unbroken_chain() {
    let place = Place::new();
    let log = place.open();
    thread::scope(|scope| {
        for name in ["one", "two", "three", "four"] {
            let log = &log;
            scope.spawn(move || (0..250).for_each(|_| log.append(allowed(name)).unwrap()));
        }
        scope.spawn(|| (0..20).for_each(|_| log.sync().unwrap()));
    });
    let reports = verify_all(&place.dir(), Some(log.head().unwrap()), Writer::Steady).unwrap();
    let records: Vec<_> = reports.iter().map(|report| report.outcome.as_ref().unwrap().records).collect();
    assert_eq!(records, [1000, 250, 250, 250, 250]);
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let place = Place::new();
    drop(place.open());
    fs::remove_file(place.unified()).unwrap();
    std::os::unix::fs::symlink("/dev/null", place.unified()).unwrap();
    assert!(matches!(AuditLog::open(&place.dir(), STORAGE), Err(AuditError::Open { .. })));
    fs::remove_file(place.unified()).unwrap();
    fs::create_dir(place.unified()).unwrap();
    assert!(AuditLog::open(&place.dir(), STORAGE).is_err());
}

#[test]
fn an_error_in_the_cloisters_file_is_an_error_until_it_is_mended() {
    let place = Place::new();
    let log = place.open();
    let own = cloister_file(&place.dir(), &cloister("demo"));
    fs::create_dir(&own).unwrap();
    assert!(log.append(allowed("demo")).is_err());
    fs::remove_dir(&own).unwrap();
    log.append(allowed("demo")).unwrap();
    log.sync().unwrap();
    assert_eq!(verify(&place.unified(), None).unwrap().records, 1);
    assert_eq!(verify(&own, None).unwrap().records, 1);
}

#[test]
fn a17_a_file_changed_while_it_is_open_stops_the_log() {
    let place = Place::new();
    let log = place.open();
    fill(&log, 2);
    OpenOptions::new().append(true).open(place.unified()).unwrap().write_all(b"x\n").unwrap();
    assert!(matches!(log.sync(), Err(AuditError::Changed { .. })));
    assert!(matches!(log.append(allowed("demo")), Err(AuditError::Changed { .. })));
    let place = Place::new();
    let log = place.open();
    fill(&log, 2);
    fs::remove_file(place.unified()).unwrap();
    // A look at the file holds for a short time.
    let error = (0..).find_map(|_| log.append(allowed("demo")).err()).unwrap();
    assert!(matches!(error, AuditError::Changed { .. }), "{error}");
    assert!(matches!(log.append(allowed("demo")), Err(AuditError::Changed { .. })));
}

#[test]
fn a_full_disk_refuses_records_and_works_again_with_room() {
    on_small_disk("audit::tests::a_full_disk_refuses_records_and_works_again_with_room", || {
        let place = Place::new();
        let log = place.open();
        let written = fill_disk(&log);
        assert!(log.append(allowed("demo").detail("x".repeat(4000))).is_err());
        let head = log.head().unwrap();
        assert_eq!(verify(&place.unified(), Some(head)).unwrap().records, written);
        make_room_on_disk();
        fill(&log, 10);
        let verified = verify(&place.unified(), Some(log.head().unwrap())).unwrap();
        assert_eq!((verified.records, verified.recoveries), (written + 10, 0));
        assert!(
            verify_all(&place.dir(), None, Writer::Steady)
                .unwrap()
                .iter()
                .all(|report| report.outcome.is_ok())
        );
    });
}

#[test]
fn a_line_torn_at_any_byte_is_closed() {
    let place = Place::new();
    fill(&place.open(), 3);
    let whole = fs::read(place.unified()).unwrap();
    let borders: Vec<_> = (1..=whole.len()).filter(|end| whole[end - 1] == b'\n').collect();
    for length in 0..=whole.len() {
        fs::write(place.unified(), &whole[..length]).unwrap();
        fill(&place.open(), 2);
        let verified = verify(&place.unified(), None).unwrap();
        let kept = borders.iter().filter(|border| length + 1 >= **border).count() as u64;
        let torn = u64::from(length != 0 && !borders.contains(&length));
        assert_eq!((verified.records, verified.recoveries), (kept + torn + 2, torn), "cut at {length}");
    }
}

#[test]
fn a_recovery_torn_at_any_byte_is_closed() {
    let place = Place::new();
    fill(&place.open(), 2);
    let mut torn = fs::read(place.unified()).unwrap();
    let good = torn.len();
    torn.extend_from_slice(br#"{"seq":3,"time":"2026"#);
    fs::write(place.unified(), &torn).unwrap();
    drop(place.open());
    let recovered = fs::read(place.unified()).unwrap();
    assert!(recovered.len() > torn.len());
    for length in good + 1..recovered.len() {
        fs::write(place.unified(), &recovered[..length]).unwrap();
        fill(&place.open(), 1);
        let verified = verify(&place.unified(), None).unwrap();
        let recoveries = if length + 1 == recovered.len() { 2 } else { 1 };
        assert_eq!((verified.records, verified.recoveries), (3 + recoveries, recoveries), "cut at {length}");
    }
}

#[test]
fn a_long_tail_without_any_record_is_not_continued() {
    let place = Place::new();
    fill(&place.open(), 1);
    let mut file = OpenOptions::new().append(true).open(place.unified()).unwrap();
    file.write_all(&vec![0; 2 * 1024 * 1024]).unwrap();
    let error = AuditLog::open(&place.dir(), STORAGE).unwrap_err();
    assert!(matches!(error, AuditError::Damaged { searched: 1_048_576, .. }), "{error}");
}

/// Returns a small log with a recovery in its middle, and its head.
fn small_log(place: &Place) -> (Vec<u8>, Head) {
    fill(&place.open(), 2);
    OpenOptions::new().append(true).open(place.unified()).unwrap().write_all(b"{\"seq\":3,").unwrap();
    let log = place.open();
    fill(&log, 1);
    (fs::read(place.unified()).unwrap(), log.head().unwrap())
}

#[track_caller]
fn check_tampered(bytes: &[u8], expect: Option<Head>, what: &str) {
    assert!(verify::verify_lines(bytes, Path::new("log"), expect).is_err(), "{what}");
}

#[test]
fn a17_every_changed_added_or_removed_byte_is_found() {
    let place = Place::new();
    let (good, head) = small_log(&place);
    assert_eq!(verify(&place.unified(), Some(head)).unwrap().recoveries, 1);
    let last_line = good[..good.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for at in 0..good.len() {
        let mut variants = Vec::new();
        for mask in [1, 2, 0x10, 0x20, 0x80] {
            let mut changed = good.clone();
            changed[at] ^= mask;
            variants.push(changed);
        }
        for byte in [b'\n', b' ', b'0'] {
            let mut changed = good.clone();
            changed.insert(at, byte);
            variants.push(changed);
        }
        let mut changed = good.clone();
        changed.remove(at);
        variants.push(changed);
        for changed in variants.iter().filter(|changed| **changed != good) {
            check_tampered(changed, Some(head), &format!("byte {at} with the head"));
            if at < last_line {
                check_tampered(changed, None, &format!("byte {at}"));
            }
        }
    }
}

#[test]
fn a17_removed_doubled_and_swapped_lines_are_named() {
    let place = Place::new();
    fill(&place.open(), 4);
    let good = fs::read_to_string(place.unified()).unwrap();
    let head = verify(&place.unified(), None).unwrap().head;
    let lines: Vec<_> = good.split_inclusive('\n').collect();
    let check = |order: &[usize], expected: (u64, Problem)| {
        let text: String = order.iter().map(|line| lines[*line]).collect();
        fs::write(place.unified(), text).unwrap();
        match verify(&place.unified(), Some(head)) {
            Err(VerifyError::BadLine { line, problem, .. }) => assert_eq!((line, problem), expected),
            other => panic!("{other:?}"),
        }
    };
    check(&[1, 2, 3], (1, Problem::Missing { expected: 1, found: 2 }));
    check(&[0, 2, 3], (2, Problem::Missing { expected: 2, found: 3 }));
    check(&[0, 0, 1, 2, 3], (2, Problem::Duplicate { expected: 2, found: 1 }));
    check(&[0, 1, 3, 2], (3, Problem::Missing { expected: 3, found: 4 }));
    fs::write(place.unified(), lines[..3].concat()).unwrap();
    let truncated = verify(&place.unified(), Some(head)).unwrap_err();
    assert!(matches!(truncated, VerifyError::Truncated { last: 3, expected: 4, .. }), "{truncated}");
    assert!(verify(&place.unified(), None).is_ok());
}

#[test]
fn a17_a_rewritten_log_differs_from_the_noted_head() {
    let place = Place::new();
    fill(&place.open(), 2);
    let noted = verify(&place.unified(), None).unwrap().head;
    fs::remove_file(place.unified()).unwrap();
    let log = place.open();
    (0..3).for_each(|_| log.append(Record::new(Event::GuardianStart)).unwrap());
    assert!(verify(&place.unified(), None).is_ok());
    match verify(&place.unified(), Some(noted)) {
        Err(VerifyError::BadLine { line: 2, problem: Problem::WrongHead, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_event_of_a_newer_version_does_not_break_the_chain() {
    let place = Place::new();
    drop(place.open());
    let zeros = LineHash::START;
    let line = format!(
        r#"{{"seq":1,"time":"2026-01-01T00:00:00Z","prev":"{zeros}","event":"moon.rise","phase":3}}"#
    );
    fs::write(place.unified(), line + "\n").unwrap();
    fill(&place.open(), 1);
    assert_eq!(verify(&place.unified(), None).unwrap().records, 2);
    let read: Vec<_> = Reader::open(&place.unified(), Filter::default()).unwrap().collect();
    assert!(matches!(read[0], Err(ReadError::NotAnEntry { line: 1, .. })));
    assert_eq!(read[1].as_ref().unwrap().seq, 2);
}

#[test]
fn a_reader_filters_and_follows() {
    let place = Place::new();
    let log = place.open();
    log.append(Record::new(Event::GuardianStart)).unwrap();
    log.append(allowed("one")).unwrap();
    let filter = Filter { cloister: Some(cloister("one")), ..Filter::default() };
    let mut reader = Reader::open(&place.unified(), filter).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().seq, 2);
    assert!(reader.next().is_none());
    log.append(allowed("two")).unwrap();
    log.append(allowed("one")).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().seq, 4);
    assert!(reader.next().is_none());
    let last = place.entries(Filter::default()).pop().unwrap();
    let since = Filter { since: Some(last.time), ..Filter::default() };
    assert!(place.entries(since).contains(&last));
    let later = Filter { since: Some(last.time + Duration::from_secs(1)), ..Filter::default() };
    assert_eq!(place.entries(later), []);
}

#[test]
fn a_reader_waits_for_the_rest_of_a_line() {
    let place = Place::new();
    fill(&place.open(), 1);
    let whole = fs::read(place.unified()).unwrap();
    fs::write(place.unified(), &whole[..50]).unwrap();
    let mut reader = Reader::open(&place.unified(), Filter::default()).unwrap();
    assert!(reader.next().is_none());
    OpenOptions::new().append(true).open(place.unified()).unwrap().write_all(&whole[50..]).unwrap();
    assert_eq!(reader.next().unwrap().unwrap().seq, 1);
}

#[test]
fn a15_an_entry_is_shown_on_one_line_without_tricks() {
    let place = Place::new();
    let log = place.open();
    let record = allowed("demo").host("evil\u{1b}[2J\n").reason("denied_by_rule").rule("*.example.com");
    log.append(record.argv(["git", "commit -m"]).exit_code(1).detail("x rule=y \u{202e}")).unwrap();
    let entry = place.entries(Filter::default()).pop().unwrap();
    let time = format!("{:.0}", entry.time);
    assert_eq!(
        entry.to_string(),
        format!(
            r#"{time} proxy.allow demo "evil\u{{1b}}[2J\n:443" reason=denied_by_rule rule=*.example.com detail="x rule=y \u{{202e}}" exit=1 -- git "commit -m""#
        )
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a15_any_text_comes_back_and_stays_on_its_line(
        texts in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![any::<char>(), proptest::char::range('\0', '\u{a0}')], 0..30)
                .prop_map(|characters| characters.into_iter().collect::<String>()),
            3,
        ),
    ) {
        let place = Place::new();
        let log = AuditLog::open(&place.dir(), UNIFIED_ONLY).unwrap();
        let record = Record::new(Event::ProxyDeny).host(&texts[0]).detail(&texts[1]);
        log.append(record.argv([&texts[2], "\"\r\n{}\u{1b}]0;x\u{7}"])).unwrap();
        log.append(Record::new(Event::GuardianStop)).unwrap();
        prop_assert_eq!(fs::read_to_string(place.unified()).unwrap().lines().count(), 2);
        prop_assert!(verify(&place.unified(), Some(log.head().unwrap())).is_ok());
        let entry = place.entries(Filter::default()).remove(0);
        prop_assert_eq!(entry.host.as_deref(), Some(texts[0].as_str()));
        prop_assert_eq!(entry.detail.as_deref(), Some(texts[1].as_str()));
        prop_assert_eq!(&entry.argv.as_ref().unwrap()[0], &texts[2]);
        prop_assert!(!entry.to_string().chars().any(char::is_control));
    }
}
