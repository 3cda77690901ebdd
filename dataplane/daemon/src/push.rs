//! The state socket's side of the conversation with the control plane.

use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use sluice_state::framing::{FramingError, MAX_MESSAGE, read_message, write_message};
use sluice_state::push::{Hello, PUSH_VERSION, Push, PushReply};

use crate::control::Event;
use crate::socket::Connection;

/// Clients of the state socket at a time: the agent, its successor during an upgrade, and somebody with a question.
pub const CLIENTS: usize = 4;
/// Generations per second and client.
pub const RATE: u32 = 200;
/// How long the control thread may take for one generation.
const PATIENCE: Duration = Duration::from_secs(30);

/// Talks to one client until it closes.
pub fn serve(connection: &mut Connection, control: &Sender<Event>) {
    match converse(connection, control) {
        Ok(()) | Err(FramingError::Closed) => {}
        Err(error) => tracing::warn!(%error, "a client of the state socket was cut off"),
    }
}

fn converse(connection: &mut Connection, control: &Sender<Event>) -> Result<(), FramingError> {
    let hello: Hello = read_message(&mut connection.stream, 4096)?;
    let generation = ask(control, |reply| Event::Generation { reply }).unwrap_or_default();
    if hello.version != PUSH_VERSION {
        let reason = format!("protocol version {} is not spoken here: {PUSH_VERSION} is", hello.version);
        return write_message(
            &mut connection.stream,
            &PushReply::Refused { generation, reason, findings: vec![] },
        );
    }
    tracing::info!(client = hello.client, generation, "a control plane has connected");
    let daemon = env!("CARGO_PKG_VERSION").to_owned();
    write_message(&mut connection.stream, &PushReply::Hello { version: PUSH_VERSION, daemon, generation })?;
    while connection.wait(None) {
        let Push::Generation(generation) = match read_message(&mut connection.stream, MAX_MESSAGE) {
            Ok(push) => push,
            Err(FramingError::Syntax(error)) => {
                // The stream is still in step: what does not parse is refused, and the client may go on.
                let generation = ask(control, |reply| Event::Generation { reply }).unwrap_or_default();
                let reason = format!("the message does not parse: {error}");
                write_message(
                    &mut connection.stream,
                    &PushReply::Refused { generation, reason, findings: vec![] },
                )?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let number = generation.number;
        let reply = ask(control, |reply| Event::Push { generation: Box::new(generation), reply });
        let reply = reply.unwrap_or_else(|| PushReply::Refused {
            generation: 0,
            reason: format!("generation {number} was not answered within {} s", PATIENCE.as_secs()),
            findings: vec![],
        });
        write_message(&mut connection.stream, &reply)?;
    }
    Ok(())
}

fn ask<T>(control: &Sender<Event>, event: impl FnOnce(Sender<T>) -> Event) -> Option<T> {
    let (reply, answer) = bounded(1);
    control.send(event(reply)).ok()?;
    answer.recv_timeout(PATIENCE).ok()
}
