//! The fake Kubernetes API server against a real one: what that answered, recorded once, is asked of the fake again, in the
//! same order, with the same watches open.

mod compare;
mod http;
mod left_out;
mod recording;
mod replay;

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use left_out::{BODY_LEFT_OUT, EVENTS_LEFT_OUT, LEFT_OUT};
use replay::Replay;

#[test]
fn the_fake_answers_as_the_real_server_did() -> Result<()> {
    let recording = recording::read()?;
    let mut replay = Replay::start(&recording.watches)?;
    for step in &recording.steps {
        replay.play(step)?;
    }
    let outcome = replay.finish();
    let left_out: BTreeSet<&str> = LEFT_OUT.iter().map(|(id, _)| *id).collect();
    println!(
        "{} exchanges and {} watches compared ({} events, {} exchanges but for their bodies), {} left out:",
        outcome.exchanges,
        outcome.watches,
        outcome.events,
        BODY_LEFT_OUT.len(),
        left_out.len()
    );
    for (id, why) in LEFT_OUT.iter().chain(BODY_LEFT_OUT).chain(EVENTS_LEFT_OUT) {
        println!("  {id}: {why}");
    }
    ensure!(outcome.skipped == left_out, "left out were {:?}", outcome.skipped);
    ensure!(outcome.wrong.is_empty(), "{} differ:\n{}", outcome.wrong.len(), outcome.wrong.join("\n"));
    ensure!(outcome.exchanges + outcome.watches + left_out.len() == 474 + 49, "some were not played");
    Ok(())
}
