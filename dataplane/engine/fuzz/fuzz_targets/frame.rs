//! Any bytes as a frame: parser, checksums, rewriting, MSS, ICMP errors.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sluice_engine::testing::exercise_frame(data);
});
