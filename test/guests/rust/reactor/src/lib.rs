//! A core module without `_start`: functions to be called. `counter` counts its calls, `fail` panics.

use std::sync::atomic::{AtomicI32, Ordering};

static COUNT: AtomicI32 = AtomicI32::new(0);

#[unsafe(no_mangle)]
extern "C" fn add(left: i32, right: i32) -> i32 {
    left.wrapping_add(right)
}

#[unsafe(no_mangle)]
extern "C" fn counter() -> i32 {
    COUNT.fetch_add(1, Ordering::Relaxed) + 1
}

#[unsafe(no_mangle)]
extern "C" fn fail() {
    panic!("on purpose");
}
