//! The binary: hands the command line to the library and its outcome to the system.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// The allocator of the system keeps what large records leave behind, see `docs/internals/allocator.md`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    tcbert_worker::cli::main()
}
