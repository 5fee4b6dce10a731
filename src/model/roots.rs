//! Where files of the repository may lie, for a program that may be started from any folder.

use std::env;
use std::path::{Path, PathBuf};

/// Folders below which a path of the repository may lie: the current one, then those above the program.
pub(crate) fn search_roots() -> Vec<PathBuf> {
    let current = env::current_dir().ok();
    let program = env::current_exe().ok();
    let above = program.iter().flat_map(|path| path.ancestors().skip(1));
    current
        .into_iter()
        .chain(above.map(Path::to_owned))
        .collect()
}
