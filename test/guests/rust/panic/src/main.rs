//! Panics three calls deep: a message on standard error, then a trap.

#[inline(never)]
fn innermost(values: &[u32], index: usize) -> u32 {
    values[index]
}

#[inline(never)]
fn middle(index: usize) -> u32 {
    innermost(&[1, 2, 3], index) + 1
}

#[inline(never)]
fn outermost(index: usize) -> u32 {
    middle(index) + 1
}

fn main() {
    println!("{}", outermost(std::env::args().count() + 2));
}
