//! The binary is one static executable: it is mounted into every sandbox, whatever libraries stand there.
#![cfg(target_os = "linux")]

use std::fs;

/// Program header types and the tag of a needed library (System V ABI, generic part).
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;

/// Why a 64-bit little-endian ELF file is not a static executable; nothing when it is one.
fn dynamic_parts(file: &[u8]) -> Vec<String> {
    assert_eq!(file[..6], *b"\x7fELF\x02\x01", "a 64-bit little-endian ELF file");
    let half = |at: usize| usize::from(u16::from_le_bytes(file[at..at + 2].try_into().unwrap()));
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let offset = |at: usize| usize::try_from(long(at)).unwrap();

    let (table, entry_bytes, entries) = (offset(0x20), half(0x36), half(0x38));
    let headers = (0..entries).map(|number| table + number * entry_bytes);
    let mut found = Vec::new();
    for header in headers {
        let (start, bytes) = (offset(header + 0x08), offset(header + 0x20));
        match word(header) {
            PT_INTERP => {
                let interpreter = String::from_utf8_lossy(&file[start..start + bytes]);
                found.push(format!("interpreter {}", interpreter.trim_end_matches('\0')));
            }
            PT_DYNAMIC => {
                let tags = (start..start + bytes).step_by(16).map(long).take_while(|&tag| tag != 0);
                found.extend(tags.filter(|&tag| tag == DT_NEEDED).map(|_| "needed library".to_owned()));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn the_binary_is_static() {
    let file = fs::read(env!("CARGO_BIN_EXE_cloister")).unwrap();
    assert_eq!(dynamic_parts(&file), Vec::<String>::new());
}

#[test]
fn a_dynamic_executable_would_be_noticed() {
    let mut file = vec![0; 0x40];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[0x20] = 0x40;
    file[0x36] = 0x38;
    file[0x38] = 2;
    let segments: [(u32, &[u8]); 2] = [(PT_INTERP, b"/lib/ld.so\0"), (PT_DYNAMIC, &[1, 0, 0, 0, 0, 0, 0, 0])];
    let mut contents: Vec<u8> = Vec::new();
    for (kind, content) in segments {
        let start = 0x40 + 2 * 0x38 + contents.len();
        let mut header = [0; 0x38];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[0x08..0x10].copy_from_slice(&u64::try_from(start).unwrap().to_le_bytes());
        header[0x20..0x28].copy_from_slice(&u64::try_from(content.len()).unwrap().to_le_bytes());
        file.extend(header);
        contents.extend(content);
    }
    file.extend(contents);
    assert_eq!(dynamic_parts(&file), ["interpreter /lib/ld.so", "needed library"]);
}
