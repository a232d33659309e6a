# `just` lists the recipes; each is one command that also works by hand.

default:
    @just --list

# Build `wharf` and `wharf-sandboxd` into target/release.
build:
    cargo build --release

# All tests.
test:
    scripts/test

# What CI checks beside the tests.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# The static sandboxd, at target/static/wharf-sandboxd.
static:
    scripts/build-static

# Ours beside the original's, when its Python is there.
bench *args:
    cargo run --release -p wharf-e2e --bin wharf-bench -- {{args}}
