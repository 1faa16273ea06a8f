//! Prints one line, and each argument on a line of its own.

fn main() {
    println!("hello from Rust");
    for argument in std::env::args().skip(1) {
        println!("{argument}");
    }
}
