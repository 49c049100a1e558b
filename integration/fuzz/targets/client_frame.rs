#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| lockservice::fuzzing::run("client_frame", input));
