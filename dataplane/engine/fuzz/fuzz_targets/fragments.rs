//! Any sequence of fragments: none is lost.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sluice_engine::testing::exercise_fragments(data);
});
