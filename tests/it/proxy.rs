//! A proxy on loopback that can swallow everything: connections stay open and nothing comes through,
//! as behind a switch that died.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    /// What a connection has to ask for to get no answers.
    unanswered: Mutex<Option<Wanted>>,
    /// Connections that get none.
    held: AtomicUsize,
    /// What is damaged on its way back, and how often still.
    damaged: Mutex<Option<(Vec<u8>, usize)>>,
}

/// Whether a request, without the four bytes that give its length, is one that is meant.
type Wanted = Box<dyn Fn(&[u8]) -> bool + Send>;

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
                let held = Arc::new(AtomicBool::new(false));
                pump(
                    &client,
                    &server,
                    &shared,
                    Direction::There(Arc::clone(&held)),
                );
                pump(&server, &client, &shared, Direction::Back(held));
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

    /// Keeps the answers of every connection back, for as long as it lives, from the first request on that is
    /// `wanted`; the requests go through. `None` spares later requests.
    pub fn leave_unanswered(&self, wanted: Option<Wanted>) {
        *self.state.unanswered.lock().unwrap() = wanted;
    }

    /// Damages the next `times` answers that hold these bytes.
    pub fn damage(&self, bytes: &[u8], times: usize) {
        *self.state.damaged.lock().unwrap() = Some((bytes.to_vec(), times));
    }

    /// How many answers are still to be damaged.
    pub fn to_be_damaged(&self) -> usize {
        let damaged = self.state.damaged.lock().unwrap();
        damaged.as_ref().map_or(0, |(_, times)| *times)
    }

    /// How many connections get no answers.
    pub fn held(&self) -> usize {
        self.state.held.load(Ordering::SeqCst)
    }
}

impl State {
    fn damage(&self, answer: &mut [u8]) {
        let mut damaged = self.damaged.lock().unwrap();
        let Some((bytes, times)) = damaged.as_mut().filter(|(_, times)| *times > 0) else {
            return;
        };
        let found = answer
            .windows(bytes.len())
            .position(|part| part == bytes.as_slice());
        if let Some(at) = found {
            answer[at] ^= 1;
            *times -= 1;
        }
    }
}

/// Which way a thread carries bytes, with whether its connection gets no answers any more.
enum Direction {
    There(Arc<AtomicBool>),
    Back(Arc<AtomicBool>),
}

/// Cuts a stream of requests into them, each after its length in four bytes.
#[derive(Default)]
struct Requests(Vec<u8>);

impl Requests {
    fn take(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.0.extend_from_slice(bytes);
        let mut whole = Vec::new();
        while let Some((length, rest)) = self.0.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if rest.len() < length {
                break;
            }
            whole.push(rest[..length].to_vec());
            self.0.drain(..4 + length);
        }
        whole
    }
}

fn pump(from: &TcpStream, to: &TcpStream, state: &Arc<State>, direction: Direction) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        let mut swallowed = false;
        let mut requests = Requests::default();
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
                    match &direction {
                        Direction::Back(held) if held.load(Ordering::SeqCst) => continue,
                        Direction::Back(_) => state.damage(&mut buffer[..count]),
                        Direction::There(held) => {
                            let unanswered = state.unanswered.lock().unwrap();
                            let asked = requests.take(&buffer[..count]);
                            if unanswered
                                .as_ref()
                                .is_some_and(|wanted| asked.iter().any(|one| wanted(one)))
                                && !held.swap(true, Ordering::SeqCst)
                            {
                                state.held.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    }
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
