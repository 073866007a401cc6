//! Durations as they are written: a number and a unit.

use std::time::Duration;

/// Says why a text is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// It is not a number with a unit.
    #[error(
        "is no duration; write a whole number with the unit `s`, `m` or `h`, such as `90s`, `10m` or `1h`"
    )]
    Form,
    /// It is a bare number.
    #[error("has no unit; write `s`, `m` or `h` behind the number, such as `90s`, `10m` or `1h`")]
    NoUnit,
    /// It is too short or too long.
    #[error("is out of range; it must lie between `1s` and `24h`")]
    OutOfRange,
}

/// Parses `90s`, `10m` or `1h`, between one second and a day.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidDuration::Form);
    }
    let seconds_per_unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "" => return Err(InvalidDuration::NoUnit),
        _ => return Err(InvalidDuration::Form),
    };
    let number: u64 = digits.parse().map_err(|_| InvalidDuration::OutOfRange)?;
    let duration = Duration::from_secs(number.saturating_mul(seconds_per_unit));
    if duration < Duration::from_secs(1) || duration > Duration::from_hours(24) {
        return Err(InvalidDuration::OutOfRange);
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::InvalidDuration::{Form, NoUnit, OutOfRange};
    use super::{InvalidDuration, parse};

    #[track_caller]
    fn check(text: &str, expected: Result<u64, InvalidDuration>) {
        assert_eq!(parse(text), expected.map(Duration::from_secs), "{text}");
    }

    #[test]
    fn a_duration_is_one_number_with_a_unit() {
        check("1s", Ok(1));
        check("90s", Ok(90));
        check("010m", Ok(600));
        check("24h", Ok(86400));
        check("1440m", Ok(86400));
        check("10", Err(NoUnit));
        for text in [
            "", "s", "m10", "-1s", "+1s", "1.5h", "1h30m", "10 m", " 10m", "10m ", "10M", "1d", "10ms", "1²s",
        ] {
            check(text, Err(Form));
        }
        for text in ["0s", "0h", "25h", "86401s", "99999999999999999999s", "9999999999999999999h"] {
            check(text, Err(OutOfRange));
        }
    }
}
