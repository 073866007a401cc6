//! The parsers of the guardian that read foreign bytes, for the fuzz targets alone.

use super::control::api::{
    Failure, Registered, Registration, Reloaded, Revoked, Status, StopReceipt, Version,
};
use crate::name::CloisterName;

/// Reads `bytes` as the control interface would: as the body of a registration, as the name in a path, and as each
/// answer that the command line takes from a guardian. What is understood has to survive being written again.
pub fn control(bytes: &[u8]) {
    if let Ok(registration) = serde_json::from_slice::<Registration>(bytes) {
        let written =
            serde_json::to_vec(&registration).expect("names and a path that came from JSON are JSON");
        assert_eq!(serde_json::from_slice::<Registration>(&written).ok(), Some(registration));
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(name) = CloisterName::parse(text)
    {
        assert_eq!(name.as_str(), text, "a name in a path has one form");
    }
    // Whatever the answers hold: it must not end the command line.
    let _ = serde_json::from_slice::<Version>(bytes);
    let _ = serde_json::from_slice::<Registered>(bytes);
    let _ = serde_json::from_slice::<Revoked>(bytes);
    let _ = serde_json::from_slice::<Reloaded>(bytes);
    let _ = serde_json::from_slice::<Status>(bytes);
    let _ = serde_json::from_slice::<StopReceipt>(bytes);
    let _ = serde_json::from_slice::<Failure>(bytes);
}
