//! Integration tests, one module a capability; one binary, so that the crate is linked once.

mod goldens;
mod tidy;
