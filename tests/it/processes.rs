//! Waiting for processes: one that hangs is killed and told by what it has said, instead of holding up everything.

use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Longest that a process of a test may go on: far beyond what any of them takes.
pub const PROCESS_PATIENCE: Duration = Duration::from_secs(240);

/// Kills a process whose time is up. To be ended before the process is waited for by others.
pub struct Watch {
    over: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watch {
    /// Watches over the process of this id.
    pub fn over(id: u32, within: Duration) -> Self {
        let (over, ended) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let is_late = ended.recv_timeout(within) == Err(RecvTimeoutError::Timeout);
            if is_late {
                // It may end just now.
                kill(id);
            }
            is_late
        });
        Self { over, thread }
    }

    /// Ends the watch; whether the process was killed.
    pub fn end(self) -> bool {
        drop(self.over);
        self.thread.join().unwrap()
    }
}

/// Runs a command to its end, without input.
pub fn run(command: &mut Command) -> Output {
    run_within(command, PROCESS_PATIENCE)
}

/// The same for what may take longer or not as long.
pub fn run_within(command: &mut Command, within: Duration) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    finish_within(child, within)
}

/// Waits for the end of a process and for all that it says.
pub fn finish(child: Child) -> Output {
    finish_within(child, PROCESS_PATIENCE)
}

fn finish_within(child: Child, within: Duration) -> Output {
    let watch = Watch::over(child.id(), within);
    let output = child.wait_with_output().unwrap();
    assert!(
        !watch.end(),
        "a process went on for {within:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Sends a signal, named as the shell's `kill` takes it: `-TERM`.
pub fn signal(child: &Child, name: &str) {
    let signal = match name {
        "-CONT" => Signal::CONT,
        "-HUP" => Signal::HUP,
        "-INT" => Signal::INT,
        "-KILL" => Signal::KILL,
        "-STOP" => Signal::STOP,
        "-TERM" => Signal::TERM,
        other => panic!("no test has sent {other} so far"),
    };
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Ends the process of this id at once, unless it has ended.
pub fn kill(id: u32) {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw);
    let _ = kill_process(id.expect("the id of a process"), Signal::KILL);
}
