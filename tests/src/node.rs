//! A lab's node from below: daemons that must refuse to start, rights taken away, raw conversations with the daemon's
//! sockets, and what a process costs. Beside [`crate::lab`], which shows the node as its users see it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{Lab, program, sluice};

/// A daemon that was to refuse may not run for longer, in seconds of `timeout(1)`.
const REFUSAL: &str = "20";

/// How a program ended: exit code and what it said.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output and error.
    pub text: String,
}

impl Ended {
    fn run(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().expect("the program runs");
        let text = [output.stdout, output.stderr].concat();
        Self { code: output.status.code().unwrap_or(-1), text: String::from_utf8_lossy(&text).into_owned() }
    }

    /// Asserts the exit code, and that every one of these words is in the text.
    ///
    /// # Panics
    /// One is not, or it ended otherwise.
    #[track_caller]
    pub fn assert(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        for word in words {
            assert!(self.text.contains(word), "`{word}` is not in:\n{}", self.text);
        }
    }
}

/// `sluiced check` on a state of this text.
///
/// # Panics
/// The program is not built.
#[must_use]
pub fn check(state: &str, extension: &str) -> Ended {
    let name = format!("sluice-check-{}-{:?}.{extension}", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, state).expect("a file in the temporary directory");
    let ended = Ended::run(Command::new(program("sluiced")).args(["check", "--state"]).arg(&path));
    std::fs::remove_file(&path).expect("the file is still there");
    ended
}

/// The state that a lab wrote for its node.
///
/// # Panics
/// It cannot be read.
#[must_use]
pub fn state(lab: &Lab) -> String {
    std::fs::read_to_string(lab.path("state.toml")).expect("the lab's state")
}

/// Runs `sluiced` with a state in a lab's node until it ends by itself, which must be soon. `before` stands in front of
/// the program: `setpriv` and its arguments.
///
/// # Panics
/// A program cannot be run.
#[must_use]
pub fn start(lab: &Lab, before: &[&str], state: &str, args: &[&str]) -> Ended {
    let path = lab.path("refused.toml");
    std::fs::write(&path, state).expect("a file in the lab's directory");
    let mut command = Command::new("timeout");
    command.arg(REFUSAL).args(before).arg(program("sluiced")).arg("run").arg("--state").arg(path);
    command.arg("--run-dir").arg(lab.path("run")).arg("--bpffs").arg(lab.path("bpf")).args(args);
    lab.within("node", || Ended::run(&mut command))
}

/// A client of one of the daemon's sockets that speaks bytes: a length of four bytes, big endian, then JSON.
#[derive(Debug)]
pub struct Client(UnixStream);

impl Client {
    /// Connects to a socket of the run directory, `state.sock` or `query.sock`, and says nothing.
    ///
    /// # Panics
    /// Nothing listens there.
    #[must_use]
    pub fn connect(lab: &Lab, socket: &str) -> Self {
        let path: PathBuf = lab.path("run").join(socket);
        let stream = UnixStream::connect(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        stream.set_write_timeout(Some(Duration::from_secs(15))).expect("a timeout");
        Self(stream)
    }

    /// As [`Client::connect`], and introduces itself. Gives the daemon's answer with it.
    #[must_use]
    pub fn greet(lab: &Lab, socket: &str) -> (Self, Value) {
        let mut client = Self::connect(lab, socket);
        let answer = client.ask(&json!({ "version": 1, "client": "a test" }));
        (client, answer)
    }

    /// Sends a message and reads one.
    ///
    /// # Panics
    /// The daemon hangs up or does not answer JSON.
    pub fn ask(&mut self, message: &Value) -> Value {
        assert!(self.send(&framed(message.to_string().as_bytes())), "the daemon takes the message");
        let answer = self.answer().expect("an answer");
        serde_json::from_slice(&answer).expect("JSON")
    }

    /// Sends bytes as they are; false when the daemon has hung up.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// Reads one message; nothing when the daemon hangs up.
    pub fn answer(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).ok()?;
        Some(body)
    }

    /// How long the daemon takes to hang up, discarding what it says; nothing when it has not after `limit`.
    ///
    /// # Panics
    /// The socket fails otherwise.
    pub fn hung_up(&mut self, limit: Duration) -> Option<Duration> {
        let since = Instant::now();
        self.0.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let mut buffer = [0; 4096];
        while since.elapsed() < limit {
            match self.0.read(&mut buffer) {
                Ok(0) => return Some(since.elapsed()),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Some(since.elapsed()),
                _ => {}
            }
        }
        None
    }
}

/// A message with its length before it.
///
/// # Panics
/// It is of 4 GiB or more.
#[must_use]
pub fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a length");
    [&length.to_be_bytes(), body].concat()
}

/// What a process and its threads have used so far.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    at: Instant,
    cpu: Duration,
    /// Resident memory in KiB.
    pub rss_kib: u64,
}

impl Usage {
    /// Of a living process.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a living process");
        let nanoseconds = |task: std::fs::DirEntry| -> u64 {
            let schedstat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            schedstat.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
        };
        let cpu = tasks.flatten().map(nanoseconds).sum();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let rss_kib = rss.trim().trim_end_matches("kB").trim().parse().expect("a number of kB");
        Self { at: Instant::now(), cpu: Duration::from_nanos(cpu), rss_kib }
    }

    /// Cores used since an earlier look, 1.0 being one whole.
    #[must_use]
    pub fn cores_since(&self, earlier: &Self) -> f64 {
        (self.cpu - earlier.cpu).as_secs_f64() / (self.at - earlier.at).as_secs_f64()
    }
}

/// The daemon's start-up report, asked for on its query socket.
#[must_use]
pub fn report(lab: &Lab) -> Value {
    let (mut client, _) = Client::greet(lab, "query.sock");
    client.ask(&json!("report"))["report"].take()
}

/// The pods that the daemon has, asked for on its query socket.
#[must_use]
pub fn pods(lab: &Lab) -> Vec<Value> {
    let (mut client, _) = Client::greet(lab, "query.sock");
    client.ask(&json!("pods"))["pods"].as_array().cloned().unwrap_or_default()
}

/// Every counter, as `sluice stats` prints them, per worker and per port.
///
/// # Panics
/// The daemon does not answer.
#[must_use]
pub fn raw_stats(lab: &Lab) -> Value {
    let output = sluice(&["stats", "--lab", lab.name()], &["--output", "json"]);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// One counter of every queue of a device: `eni0:0`, `eni0:1`.
///
/// # Panics
/// A queue has no such counter.
#[must_use]
pub fn by_queue(lab: &Lab, device: &str, counter: &str) -> BTreeMap<String, u64> {
    let stats = raw_stats(lab);
    let ports = stats["ports"].as_array().into_iter().flatten();
    let named = ports.filter_map(|port| Some((port["port"].as_str()?.to_owned(), &port["counters"])));
    let own = named.filter(|(name, _)| name.split(':').next() == Some(device));
    own.map(|(name, counters)| (name, counters[counter].as_u64().expect("a counter"))).collect()
}

/// The daemon's log.
#[must_use]
pub fn log(lab: &Lab) -> String {
    let mut all = String::new();
    for file in ["sluiced.log", "again.log"] {
        let text = std::fs::read_to_string(lab.path(file)).unwrap_or_default();
        let _ = writeln!(all, "{text}");
    }
    all
}
