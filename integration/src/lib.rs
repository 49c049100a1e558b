//! Integration tests of lockservice live in `tests/`.
