//! Answering `/status` on every port, with a bound on how many are answered at once.

use std::io::BufReader;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::args::Serve;
use crate::http::{self, Request};
use crate::probe::{self, Board};

/// Clients that are answered at once; one more is hung up on.
const CLIENTS: usize = 64;
/// A client that says nothing for this long is hung up on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers and probes until it is killed.
///
/// # Errors
/// A port cannot be had, or there is no thread to answer with.
pub(crate) fn run(settings: &Serve) -> std::io::Result<()> {
    let board = Board::default();
    let page =
        Arc::new(Page { name: settings.name.clone(), collect: settings.collect, board: board.clone() });
    let mut answering = Vec::new();
    for port in &settings.ports {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port))?;
        let page = Arc::clone(&page);
        answering.push(std::thread::Builder::new().spawn(move || page.serve(&listener))?);
    }
    crate::say(&format!(
        "{}: listens on {:?}, probes {} URLs",
        settings.name,
        settings.ports,
        settings.probes.len()
    ));
    if settings.probes.is_empty() {
        for thread in answering {
            // It ends with the process only.
            let _ = thread.join();
        }
        return Ok(());
    }
    probe::run(settings, &board);
    Ok(())
}

struct Page {
    name: String,
    collect: bool,
    board: Board,
}

impl Page {
    fn serve(self: &Arc<Self>, listener: &TcpListener) {
        let busy = Arc::new(AtomicUsize::new(0));
        loop {
            let Ok((stream, _)) = listener.accept() else {
                // Out of descriptors, most likely: some will be free in a moment.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            if busy.load(Ordering::Relaxed) >= CLIENTS {
                continue;
            }
            busy.fetch_add(1, Ordering::Relaxed);
            let (page, count) = (Arc::clone(self), Arc::clone(&busy));
            let started = std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
                // A client that goes away in the middle is its own affair.
                let _ = page.answer(&stream);
                count.fetch_sub(1, Ordering::Relaxed);
            });
            if started.is_err() {
                busy.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Answers requests for as long as the client keeps the connection.
    fn answer(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream);
        while let Some(Request { path, keep }) = http::request(&mut reader)? {
            match path.as_deref() {
                Some("/status") => {
                    let status = self.board.status(&self.name, self.collect);
                    http::answer(stream, "200 OK", keep, &status.to_string())?;
                }
                Some(_) => {
                    http::answer(stream, "404 Not Found", keep, "{\"error\": \"there is /status only\"}")?;
                }
                None => http::answer(stream, "400 Bad Request", keep, "{\"error\": \"GET only\"}")?,
            }
            if !keep {
                break;
            }
        }
        Ok(())
    }
}
