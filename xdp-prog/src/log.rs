//! libbpf speaks through one process-wide callback. It is borrowed for the time of a call, so that the verifier's log ends
//! in the error that belongs to it and harmless complaints ("qdisc exists already") end nowhere.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use libbpf_rs::{PrintLevel, set_print};

static CALLBACK: Mutex<()> = Mutex::new(());

thread_local! {
    static HEARD: RefCell<String> = const { RefCell::new(String::new()) };
}

#[expect(clippy::needless_pass_by_value)] // the signature is libbpf-rs's
fn hear(_: PrintLevel, message: String) {
    HEARD.with_borrow_mut(|heard| *heard += &message);
}

/// Runs `call` and returns with its result everything that libbpf said meanwhile.
pub(crate) fn listening<T>(call: impl FnOnce() -> T) -> (T, String) {
    let _one_at_a_time = CALLBACK.lock().unwrap_or_else(PoisonError::into_inner);
    HEARD.with_borrow_mut(String::clear);
    let before = set_print(Some((PrintLevel::Warn, hear)));
    let result = call();
    set_print(before);
    (result, HEARD.take())
}
