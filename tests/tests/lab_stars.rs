//! The Stars demo, as people run it: the whole play by its exit code and its report, and the management UI in a real
//! browser, pressed and looked at.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sluice_tests::browser::Browser;
use sluice_tests::lab::{Signal, eventually, program, signal, sluice, turn};

fn name(tag: &str) -> String {
    assert!(nix::unistd::geteuid().is_root(), "the lab's tests need root: run them with sudo");
    format!("t{}x{tag}", std::process::id())
}

/// Nothing of a lab is left.
fn assert_gone(lab: &str) {
    let names = |dir: &str| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(lab)).collect()
    };
    assert_eq!((names("/run/netns"), names("/run/sluice-lab")), (Vec::new(), Vec::new()));
}

/// The result of a pair in a step of the report.
fn result<'a>(step: &'a Value, from: &str, to: &str, port: u16) -> &'a str {
    let cells = step["cells"].as_array().into_iter().flatten();
    let mut found = cells.filter(|c| c["from"] == from && c["to"] == to && c["port"] == port);
    found
        .next()
        .and_then(|c| c["result"].as_str())
        .unwrap_or_else(|| panic!("no {from} -> {to}:{port} in {step}"))
}

#[test]
fn the_whole_play_is_as_the_policies_say() {
    let lab = name("stars");
    let _turn = turn();
    let output = sluice(&["lab", "stars", "--name", &lab, "--output", "json"], &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    let wrong: Vec<_> = report["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .flat_map(|step| {
            let cells = step["cells"].as_array().into_iter().flatten().filter(|cell| cell["ok"] != true);
            cells.map(move |cell| format!("{}: {cell}", step["name"]))
        })
        .collect();
    assert!(wrong.is_empty(), "{}\n{said}", wrong.join("\n"));
    assert!(output.status.success() && report["failed"] == 0, "{}\n{said}", report["checks"]);
    assert!(report["passed"].as_u64().is_some_and(|passed| passed >= 300), "{}", report["passed"]);

    // Not by the judgement of what is tested alone: the demo's own turning points, by hand.
    let step = |name: &str| {
        let found = report["steps"].as_array().expect("steps").iter().find(|step| step["name"] == name);
        found.unwrap_or_else(|| panic!("no step {name}"))
    };
    assert_eq!(result(step("S0"), "backend", "client", 9000), "ok");
    assert_eq!(result(step("S1"), "management-ui", "frontend", 80), "timeout");
    assert_eq!(result(step("S1"), "frontend", "frontend", 80), "ok");
    assert_eq!(result(step("S1"), "node", "backend", 6379), "ok");
    assert_eq!(result(step("S2"), "management-ui", "frontend", 80), "ok");
    assert_eq!(result(step("S3"), "frontend", "backend", 6379), "ok");
    assert_eq!(result(step("S3"), "frontend", "backend", 6380), "timeout");
    assert_eq!(result(step("S4"), "visitor", "frontend", 80), "ok");
    assert_eq!(result(step("S4"), "client", "backend", 6379), "timeout");
    assert_eq!(result(step("S4 without S3"), "frontend", "backend", 6379), "timeout");
    assert_eq!(result(step("the end"), "client", "backend", 6379), "ok");
    assert_gone(&lab);
}

/// A demo that serves its page, ended as Ctrl-C does.
struct Serving {
    child: Child,
    lab: String,
    /// `127.0.0.1:PORT`.
    at: String,
    url: String,
}

impl Serving {
    fn start(tag: &str) -> Self {
        let lab = name(tag);
        let mut command = Command::new(program("sluice"));
        command.args(["lab", "stars", "--name", &lab, "--serve", "127.0.0.1:0"]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("sluice lab stars starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        let at = url["http://".len()..].split('/').next().expect("a host").to_owned();
        Self { child, lab, at, url }
    }

    fn token(&self) -> &str {
        self.url.split("token=").nth(1).expect("a token")
    }

    /// Sends a request and gives the status and everything after it.
    fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.at).expect("the page's server");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        let mut request =
            format!("{line} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{request}\r\n{body}").as_bytes()).expect("a request is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        (status.unwrap_or_else(|| panic!("{answer}")), answer)
    }

    /// Ends it as Ctrl-C does, and sees that nothing stays.
    fn end(mut self) {
        signal(i32::try_from(self.child.id()).expect("a process id"), Signal::SIGINT);
        let mut ended = None;
        let mut look = || {
            ended = self.child.try_wait().expect("a child");
            ended.is_some()
        };
        // The stars and the daemon each have some seconds to end.
        (0..5).any(|_| {
            (0..50).any(|_| {
                look() || {
                    std::thread::sleep(Duration::from_millis(100));
                    false
                }
            })
        });
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
        assert_gone(&self.lab);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // After `end` there is nothing; in the middle of a failure the lab must not stay.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = sluice(&["lab", "down", "--name", &self.lab], &[]);
        }
    }
}

#[test]
fn the_management_ui_shows_what_is_in_force_and_changes_it() {
    let _turn = turn();
    let serving = Serving::start("ui");
    strangers_get_nothing(&serving);
    // Half a request, until the end: it holds up nobody.
    let mut half = TcpStream::connect(&serving.at).expect("the page's server");
    let head =
        format!("POST /api/policies HTTP/1.1\r\nHost: {}\r\nContent-Length: 90000\r\n\r\n", serving.at);
    half.write_all(head.as_bytes()).expect("a request is taken");

    let mut browser = Browser::start();
    browser.open(&serving.url);
    settled(&mut browser, "");
    assert_eq!(browser.value("location.hash"), "", "the token does not stay where it is seen");
    assert_eq!(edges(&mut browser), 14);
    assert_eq!(browser.value("document.querySelectorAll('.edge.yes').length"), 14, "S0: everybody answers");

    assert_eq!(
        browser.value("document.querySelectorAll('.eye.sees').length"),
        3,
        "the UI has three statuses"
    );

    // The names were asked through the engine: from the pods to the service's address, answered by a pod.
    let flows = sluice(&["flows", "--lab", &serving.lab, "--port", "53", "--output", "json"], &[]);
    let flows: Value = serde_json::from_slice(&flows.stdout).expect("flows");
    let asked = flows["rows"].as_array().into_iter().flatten().filter(|flow| {
        flow["original"]["dst"] == "10.100.0.10" && flow["translated"]["dst"] != "10.100.0.10"
    });
    assert!(asked.count() >= 5, "{flows}");

    // S1: the buttons, the arrows, the matrix, the list.
    browser.press("#steps button:nth-child(2)");
    settled(&mut browser, "S1");
    assert_eq!(arrow(&mut browser, "management-ui", "frontend"), "edge no");
    assert_eq!(arrow(&mut browser, "frontend", "frontend"), "edge yes");
    assert_eq!(arrow(&mut browser, "browser", "management-ui"), "edge yes");
    assert_eq!(browser.value("document.querySelector('[data-policy=S1]').className"), "policy on");
    assert_eq!(browser.value("document.querySelectorAll('.policy.on').length"), 1);
    assert_eq!(browser.value("document.querySelectorAll('.eye.sees').length"), 0, "the UI is blind");

    // A policy by itself, by its switch; then S4 and back.
    browser.press("[data-policy=S3] .switch");
    settled(&mut browser, "S1 S3");
    assert_eq!(arrow(&mut browser, "frontend", "backend"), "edge yes");
    browser.press("#steps button:nth-child(4)");
    settled(&mut browser, "S1 S2 S3");
    browser.picture(&picture("stars-light.png"));
    browser.press("#steps button:nth-child(5)");
    settled(&mut browser, "S1 S2 S3 S4");
    assert_eq!(arrow(&mut browser, "client", "frontend"), "edge yes");
    assert_eq!(arrow(&mut browser, "client", "backend"), "edge no");
    browser.press("#theme");
    browser.press("#theme");
    browser.open(&format!("http://{}/?theme=dark", serving.at));
    settled(&mut browser, "S1 S2 S3 S4");
    browser.picture(&picture("stars-dark.png"));
    browser.press("#back");
    settled(&mut browser, "");

    // Its own server is all that the page ever asks, and it complains of nothing.
    let asked = browser.value("performance.getEntriesByType('resource').map(e => e.name)");
    let own = format!("http://{}/", serving.at);
    let asked = asked.as_array().expect("a list");
    assert!(asked.iter().all(|url| url.as_str().is_some_and(|u| u.starts_with(&own))), "{asked:?}");
    assert_eq!(browser.complaints(), [""; 0]);

    // Another tab, without the token: it sees and changes nothing.
    let mut stranger = Browser::start();
    stranger.open(&own);
    settled(&mut stranger, "");
    assert_eq!(stranger.value("document.querySelectorAll('#steps button:disabled').length"), 5);
    drop((browser, stranger));
    serving.end();
    drop(half);
}

/// What is in force is shown, and all that is seen is what the policies say.
fn settled(browser: &mut Browser, in_force: &str) {
    browser.wait(&format!(
        "document.body.dataset.inForce === {in_force:?} && document.body.dataset.settled === 'true' && \
         document.getElementById('verdict').textContent.startsWith('all ')"
    ));
}

fn edges(browser: &mut Browser) -> u64 {
    browser.value("document.querySelectorAll('.edge').length").as_u64().expect("a number")
}

fn arrow(browser: &mut Browser, from: &str, to: &str) -> String {
    let found = browser.value(&format!(
        "document.querySelector('.edge[data-from=\"{from}\"][data-to=\"{to}\"]').getAttribute('class')"
    ));
    found.as_str().expect("a class").to_owned()
}

/// In `target/`, to be looked at.
fn picture(name: &str) -> PathBuf {
    let target =
        program("sluice").parent().and_then(|dir| dir.parent()).expect("a target directory").to_owned();
    target.join(name)
}

fn strangers_get_nothing(serving: &Serving) {
    let own = [("Host", serving.at.as_str())];
    let (status, page) = serving.ask("GET /", &own, "");
    assert_eq!(status, 200);
    for header in ["default-src 'none'", "frame-ancestors 'none'", "nosniff", "no-store", "no-referrer"] {
        assert!(page.contains(header), "no {header}");
    }
    assert!(!page.contains(serving.token()), "the page gives the token to whoever asks");
    let (status, state) = serving.ask("GET /api/state", &own, "");
    assert!(status == 200 && !state.contains(serving.token()), "{state}");

    // A name that was rebound to this address.
    for host in [&[("Host", "evil.example")][..], &[("Host", "127.0.0.1")], &[]] {
        assert!([400, 421].contains(&serving.ask("GET /api/state", host, "").0), "{host:?}");
    }
    let order = r#"{"policies": ["S1"]}"#;
    let token = ("X-Sluice-Token", serving.token());
    let elsewhere = ("Origin", "http://evil.example");
    for (headers, body, expected) in [
        (vec![own[0]], order, 403),
        (vec![own[0], ("X-Sluice-Token", "00000000000000000000000000000000")], order, 403),
        (vec![own[0], token, elsewhere], order, 403),
        (vec![("Host", "evil.example"), token], order, 421),
        (vec![own[0], token], r#"{"policies": ["S9"]}"#, 400),
        (vec![own[0], token], "nonsense", 400),
    ] {
        assert_eq!(serving.ask("POST /api/policies", &headers, body).0, expected, "{headers:?} {body}");
    }
    assert_eq!(serving.ask("DELETE /api/policies", &own, "").0, 405);
    assert_eq!(serving.ask("GET /etc/passwd", &own, "").0, 404);
    eventually("nothing has changed", || {
        serving.ask("GET /api/state", &own, "").1.contains(r#""in_force":[],"busy":null"#)
    });
}
