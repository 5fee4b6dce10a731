//! A proxy on loopback that can swallow everything: connections stay open and nothing comes through,
//! as behind a switch that died.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a thread looks whether it may go on.
const TICK: Duration = Duration::from_millis(20);

/// Cheap to clone; ends with the process.
#[derive(Clone)]
pub struct Proxy {
    address: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    upstream: Mutex<Option<String>>,
    swallows: AtomicBool,
}

impl Proxy {
    /// Listens on a free port; connections are refused until it knows where to forward to.
    pub fn reserve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let upstream = shared.upstream.lock().unwrap().clone();
                let Some(server) = upstream.and_then(|to| TcpStream::connect(to).ok()) else {
                    continue;
                };
                pump(&client, &server, &shared);
                pump(&server, &client, &shared);
            }
        });
        Self { address, state }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where connections lead from now on.
    pub fn forward_to(&self, address: &str) {
        *self.state.upstream.lock().unwrap() = Some(address.to_owned());
    }

    /// Lets nothing through in either direction, or everything again. What was swallowed stays so:
    /// the connections of that time are cut when it ends, as a network does that forgot them.
    pub fn swallow(&self, everything: bool) {
        self.state.swallows.store(everything, Ordering::SeqCst);
    }
}

fn pump(from: &TcpStream, to: &TcpStream, state: &Arc<State>) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        let mut swallowed = false;
        let _ = from.set_read_timeout(Some(TICK));
        loop {
            let swallows = state.swallows.load(Ordering::SeqCst);
            if swallowed && !swallows {
                break;
            }
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) if swallows => swallowed = true,
                Ok(count) => {
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                Err(error) if is_a_timeout(&error) => {}
                Err(_) => break,
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

fn is_a_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
