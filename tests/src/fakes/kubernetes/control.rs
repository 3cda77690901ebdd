//! The control endpoint: everything that a test can do to the server by its Rust API, for a person with curl.
//!
//! | request | what it does |
//! |---|---|
//! | `GET /control` | versions, objects, requests, faults that wait |
//! | `POST /control/faults` | adds a [`Fault`]: `{"resource":"pods","verb":"watch","times":1,"what":"cut","after":3}` |
//! | `DELETE /control/faults` | takes all away |
//! | `POST /control/order` | an [`Order`] to open watches: `{"resource":"pods","end":"expire"}` |
//! | `POST /control/load` | stores YAML or JSON manifests, status included |
//! | `POST /control/compact`, `/control/restart` | throws history away; empties the watch cache |
//! | `POST /control/away` | `{"millis":2000}`: refuses connections for so long |

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::answer::{self, Reply};
use super::faults::{Fault, Order};
use super::kinds::RESOURCES;
use super::request::Wanted;
use super::server::{self, Shared};

pub(super) async fn handle(shared: &Arc<Shared>, method: &Method, path: &str, body: &[u8]) -> Reply {
    match act(shared, method, path.trim_end_matches('/'), body) {
        Ok(value) => answer::document(200, &value, Wanted::Whole),
        Err(why) => answer::text(400, &format!("{why}\n")),
    }
}

fn act(shared: &Arc<Shared>, method: &Method, path: &str, body: &[u8]) -> Result<Value, String> {
    let parsed = || serde_json::from_slice::<Value>(body).map_err(|e| format!("the body is no JSON: {e}"));
    match (method.as_str(), path) {
        ("GET", "") => {}
        ("POST", "/faults") => {
            let fault: Fault = serde_json::from_slice(body).map_err(|e| format!("this is no fault: {e}"))?;
            shared.faults.add(fault);
        }
        ("DELETE", "/faults") => shared.faults.clear(),
        ("POST", "/order") => {
            let order: Order = serde_json::from_slice(body).map_err(|e| format!("this is no order: {e}"))?;
            shared.faults.order(order);
        }
        ("POST", "/load") => {
            let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
            for manifest in super::load::documents(text)? {
                let stored = shared.world(|world| world.load(&manifest).map(drop));
                stored.map_err(|refusal| refusal.body["message"].to_string())?;
            }
        }
        ("POST", "/compact") => shared.world(|world| world.store.compact(world.store.rv())),
        ("POST", "/restart") => shared.restart(),
        ("POST", "/away") => away(shared, parsed()?["millis"].as_u64().unwrap_or(1_000))?,
        _ => return Err(format!("there is no {method} /control{path}; GET /control tells what there is")),
    }
    Ok(state(shared))
}

/// Goes away for a while. What answers this request goes too: the client sees its connection end.
fn away(shared: &Arc<Shared>, millis: u64) -> Result<(), String> {
    let address = *shared.address.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Handle::try_current().map_err(|e| e.to_string())?;
    let shared = shared.clone();
    std::thread::spawn(move || {
        let _entered = runtime.enter();
        server::off(&shared);
        std::thread::sleep(Duration::from_millis(millis));
        if let Err(e) = server::on(&shared, address) {
            eprintln!("the fake API server cannot come back on {address}: {e}");
        }
    });
    Ok(())
}

fn state(shared: &Shared) -> Value {
    let (rv, objects) = shared.world(|world| {
        let count = |r: &super::kinds::Resource| (r.qualified(), json!(world.store.table(r).len()));
        let objects: serde_json::Map<_, _> = RESOURCES.iter().map(count).collect();
        (world.store.rv(), objects)
    });
    json!({
        "resourceVersion": rv, "objects": objects, "requests": shared.requests(), "faults": shared.faults.waiting(),
    })
}
