//! Running foreign commands (`ip`, `nft`, `iptables-restore`, `ethtool`) so that a failure says everything: the command,
//! the line of its input that was refused, its own words, and where to get it when it is missing.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Where a command comes from, for the message when it is missing.
const PACKAGES: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-restore", "iptables"),
    ("ethtool", "ethtool"),
    ("iperf3", "iperf3"),
];

/// Runs a command and gives what it wrote to its standard output.
///
/// # Errors
/// It is missing, or it failed; the message carries the command line and its standard error.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String> {
    feed(program, args, "")
}

/// Runs a command with `input` on its standard input and gives what it wrote to its standard output.
///
/// # Errors
/// As [`run`]; for a script that names a failed line (`Command failed -:3`) that line is shown too.
pub(crate) fn feed(program: &str, args: &[&str], input: &str) -> Result<String> {
    let output = output(program, args, input)?;
    if !output.status.success() {
        let line = [program].iter().chain(args).copied().collect::<Vec<_>>().join(" ");
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let refused =
            failed_line(&words, input).map(|l| format!("\n  refused line: {l}")).unwrap_or_default();
        bail!("`{line}` failed ({}): {words}{refused}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Fails with the package to install when one of the commands is missing.
///
/// # Errors
/// A command is not in `PATH`.
pub(crate) fn require(programs: &[&str]) -> Result<()> {
    for program in programs {
        if find(program).is_none() {
            bail!("`{program}` is not in PATH: install the package `{}`", package(program));
        }
    }
    Ok(())
}

fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn package(program: &str) -> &str {
    PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package)
}

fn output(program: &str, args: &[&str], input: &str) -> Result<Output> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{program}` (package `{}`)", package(program)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that refuses early closes its input: its exit status tells, not the broken pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().with_context(|| format!("cannot wait for `{program}`"))
}

/// The line of a script that iproute2 (`Command failed -:3`) complains about.
fn failed_line<'a>(words: &str, input: &'a str) -> Option<&'a str> {
    let after = words.split("Command failed -:").nth(1)?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    input.lines().nth(digits.parse::<usize>().ok()?.checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_its_words_and_the_refused_line() {
        let error = run("sh", &["-c", "echo broken >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("broken") && error.contains('3'), "{error}");
        let script = "link set lo up\nlink set nothing up\n";
        assert_eq!(
            failed_line("Cannot find device\nCommand failed -:2", script),
            Some("link set nothing up")
        );
    }

    #[test]
    fn a_missing_command_names_its_package() {
        let error = require(&["sluice-no-such-command"]).unwrap_err().to_string();
        assert!(error.contains("sluice-no-such-command"), "{error}");
        assert_eq!(package("ip"), "iproute2");
    }
}
