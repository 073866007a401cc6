//! What the proxy takes for a request head is one head for another parser, too, with equal parts (H1, H2).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((method, target, fields)) = cloister::proxy::fuzz::request_head(bytes) else { return };
    let mut found = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut found);
    let status = request.parse(bytes).expect("what the proxy takes is a head for every parser");
    assert!(status.is_complete(), "the head ends in the same place or before");
    assert_eq!(request.method, Some(method.as_str()));
    assert_eq!(request.path, Some(target.as_str()));
    let found: Vec<_> =
        request.headers.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec())).collect();
    assert_eq!(found, fields);
});
