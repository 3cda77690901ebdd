//! Compiles the BPF object and turns what the C headers define (constants, counters, the maps' layout) into Rust, so
//! that no number exists twice.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let sources = Path::new("src/bpf");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed={}", sources.display());

    let object = out.join("sluice.bpf.o");
    if let Err(error) = SkeletonBuilder::new()
        .source(sources.join("sluice.bpf.c"))
        .obj(&object)
        .clang_args(clang_arguments())
        .build()
    {
        panic!("compiling the BPF programs failed (is clang installed?): {error:#}");
    }

    let header = fs::read_to_string(sources.join("sluice.h")).expect("src/bpf/sluice.h is readable");
    let counters = fs::read_to_string(sources.join("counters.h")).expect("src/bpf/counters.h is readable");
    let mut rust = String::new();
    constants(&header, &mut rust);
    counter_table(&counters, &mut rust);
    // A map that another layout wrote must never be adopted, so the layout's name is what it is made of.
    let layout = fnv1a(&(without_comments(&header) + &without_comments(&counters)));
    writeln!(rust, "pub(crate) const LAYOUT: &str = \"{layout:016x}\";").expect("writing to a string");
    fs::write(out.join("shared.rs"), rust).expect("OUT_DIR is writable");
}

/// clang's BPF target does not search the host's multiarch directory, where Debian keeps `asm/types.h`.
fn clang_arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["-O2", "-g", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
            .iter()
            .map(OsString::from)
            .collect();
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    for triple in [format!("{architecture}-linux-gnu"), format!("{architecture}-linux-musl")] {
        let path = PathBuf::from("/usr/include").join(triple);
        if path.is_dir() {
            arguments.push("-idirafter".into());
            arguments.push(path.into());
        }
    }
    arguments
}

/// `#define SLUICE_NAME number` becomes `pub const NAME: u32`; the comment above it becomes its documentation.
fn constants(header: &str, rust: &mut String) {
    let mut doc = String::new();
    for line in header.lines() {
        if let Some(text) = line.trim().strip_prefix("/// ") {
            writeln!(doc, "/// {text}").expect("writing to a string");
            continue;
        }
        if let Some(rest) = line.strip_prefix("#define SLUICE_") {
            let mut words = rest.split_whitespace();
            if let (Some(name), Some(value)) = (words.next(), words.next())
                && !name.contains('(')
                && value.starts_with(|c: char| c.is_ascii_digit())
            {
                assert!(!doc.is_empty(), "SLUICE_{name} has no /// line above it");
                writeln!(rust, "{doc}pub const {name}: u32 = {value};").expect("writing to a string");
            }
        }
        doc.clear();
    }
}

/// `COUNTER(name, "meaning")` becomes a row of the table of counters.
fn counter_table(counters: &str, rust: &mut String) {
    rust.push_str("pub(crate) const TABLE: &[(&str, &str)] = &[\n");
    for line in counters.lines() {
        if let Some(row) = line.trim().strip_prefix("COUNTER(") {
            let (name, meaning) = row.split_once(',').expect("COUNTER(name, \"meaning\")");
            let meaning = meaning.trim().trim_end_matches(')');
            writeln!(rust, "    (\"{}\", {meaning}),", name.trim()).expect("writing to a string");
        }
    }
    rust.push_str("];\n");
}

fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("/*") {
        kept.push_str(&rest[..start]);
        rest = rest[start..].find("*/").map_or("", |end| &rest[start + end + 2..]);
    }
    kept.push_str(rest);
    let code = kept.lines().map(|line| line.split_once("///").map_or(line, |(code, _)| code));
    code.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
