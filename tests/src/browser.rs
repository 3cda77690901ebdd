//! A real browser, headless: Debian's Chromium, driven over its debugging pipe (messages of the DevTools protocol, each
//! ended by a zero byte), so that a page is tested by pressing what people press and looking at what they see.
//!
//! Everything panics with a message: this is support for tests.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long something on a page may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// No network of its own, nothing of the user's, nothing remembered.
const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1440,1400",
    "--remote-debugging-pipe",
];

/// A browser with one page, ended when it is dropped.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    session: String,
    next: u64,
    /// What the page complained of.
    complaints: Vec<String>,
    profile: TempDir,
}

impl Browser {
    /// Starts a browser with an empty page.
    ///
    /// # Panics
    /// There is no Chromium (`make deps-test` installs it), or it does not start.
    #[must_use]
    pub fn start() -> Self {
        let profile = TempDir::new().expect("a directory for the browser's profile");
        let pipe = |name: &str| {
            let path = profile.path().join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe");
            path
        };
        let (to, from) = (pipe("to"), pipe("from"));
        // The browser reads its descriptor 3 and writes 4; a shell can say that without unsafe code.
        let child = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<\"$TO\" 4>\"$FROM\"", "chromium"])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
            .arg("about:blank")
            .env("TO", &to)
            .env("FROM", &from)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(profile.path().join("log")).expect("a log"))
            .spawn()
            .expect("a shell starts");
        // Each waits for the shell to open its end; both ways at once would keep a shell that fails from being seen.
        let to = OpenOptions::new().read(true).write(true).open(&to).expect("the pipe to the browser");
        let from = BufReader::new(File::open(&from).expect("the pipe from the browser"));
        let mut browser = Self {
            child,
            to,
            from,
            session: String::new(),
            next: 1,
            complaints: Vec::new(),
            profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached =
            browser.call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        attached["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Goes to an address.
    pub fn open(&mut self, url: &str) {
        let went = self.call("Page.navigate", json!({ "url": url }));
        assert!(went["errorText"].is_null(), "{url}: {went}");
    }

    /// The value of an expression on the page.
    ///
    /// # Panics
    /// It throws.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", parameters);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true on the page.
    ///
    /// # Panics
    /// It does not become true.
    pub fn wait(&mut self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        // A page that is only just being opened may throw.
        let guarded =
            format!("(() => {{ try {{ return !!({expression}); }} catch (e) {{ return false; }} }})()");
        while self.value(&guarded) != true {
            assert!(Instant::now() < deadline, "not within {} s: {expression}", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses what a CSS selector finds, with a mouse.
    ///
    /// # Panics
    /// There is nothing.
    pub fn press(&mut self, selector: &str) {
        let place = self.value(&format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{block: 'center'}}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Writes a picture of the page.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn picture(&mut self, file: &Path) {
        // Colours that change by and by have changed.
        std::thread::sleep(Duration::from_millis(500));
        let answer = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let data = base64(answer["data"].as_str().expect("a picture"));
        assert!(data.starts_with(b"\x89PNG"), "no PNG");
        std::fs::write(file, data).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }

    /// What the page complained of: exceptions, and errors in its console.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        let id = self.next;
        self.next += 1;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        let sent = self.to.write_all(format!("{message}\0").as_bytes()).and_then(|()| self.to.flush());
        sent.unwrap_or_else(|e| panic!("{method}: the browser is gone: {e}"));
        loop {
            let mut answer = self.receive();
            if answer["id"] == id {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            let entry = &answer["params"]["entry"];
            match answer["method"].as_str() {
                Some("Runtime.exceptionThrown") => {
                    self.complaints.push(answer["params"]["exceptionDetails"].to_string());
                }
                Some("Log.entryAdded") if entry["level"] == "error" => {
                    self.complaints.push(entry.to_string())
                }
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> Value {
        let mut message = Vec::new();
        let read = self.from.read_until(0, &mut message).expect("the pipe from the browser");
        if read == 0 {
            let log = std::fs::read_to_string(self.profile.path().join("log")).unwrap_or_default();
            panic!("the browser has ended; is the package `chromium` installed (make deps-test)?\n{log}");
        }
        message.pop();
        serde_json::from_slice(&message).expect("a message of the protocol")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.to.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// RFC 4648 §4.
fn base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_read() {
        assert_eq!(base64("aGVsbG8="), b"hello");
        assert_eq!(base64("iVBORw0KGgo="), b"\x89PNG\r\n\x1a\n");
    }
}
