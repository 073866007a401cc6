//! How long codes and sessions live.

use super::*;

fn at(hours: i64) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours)
}

#[test]
fn a18_a_code_dies_after_five_minutes() {
    let mut state = State::default();
    let now = Instant::now();
    state.add_code("old", now);
    state.add_code("new", now + Duration::from_mins(1));
    let late = now + CODE_LIFE;
    assert_eq!(state.take_code("old", late), Err(LoginError::Unknown));
    assert_eq!(state.take_code("new", late), Ok(()));
    assert_eq!(state.take_code("new", late), Err(LoginError::Unknown));
}

#[test]
fn a18_wrong_codes_are_forgiven_after_a_minute() {
    let mut state = State::default();
    let now = Instant::now();
    state.add_code("right", now);
    for _ in 0..MAX_GUESSES {
        assert_eq!(state.take_code("wrong", now), Err(LoginError::Unknown));
    }
    assert_eq!(state.take_code("wrong", now), Err(LoginError::TooMany));
    assert_eq!(state.take_code("right", now), Ok(()), "nobody is locked out by another one's guesses");
    assert_eq!(state.take_code("wrong", now + GUESS_TIME), Err(LoginError::Unknown));
}

#[test]
fn a_session_lives_twelve_hours_after_its_last_use_and_a_week_at_most() {
    let mut state = State::default();
    let hash = SecretHash::of("secret");
    state.begin("secret", at(0));
    assert!(state.touch(&hash, at(11)).is_some());
    assert!(state.touch(&hash, at(22)).is_some());
    assert!(state.touch(&hash, at(35)).is_none(), "idle");
    state.begin("busy", at(0));
    let busy = SecretHash::of("busy");
    let used = (1..200).map(|hour| state.touch(&busy, at(hour)).is_some());
    assert_eq!(used.filter(|is_alive| *is_alive).count(), 7 * 24 - 1);
}

#[test]
fn a_session_from_the_future_is_none() {
    let mut state = State::default();
    state.begin("secret", at(5));
    assert!(state.touch(&SecretHash::of("secret"), at(0)).is_none());
    assert!(state.touch(&SecretHash::of("other"), at(5)).is_none());
}

#[test]
fn i5_codes_and_sessions_have_a_number() {
    let mut state = State::default();
    for number in 0..100 {
        state.add_code(&number.to_string(), Instant::now());
        state.begin(&number.to_string(), at(0));
    }
    assert_eq!((state.codes.len(), state.sessions.len()), (MAX_CODES, MAX_SESSIONS));
}
