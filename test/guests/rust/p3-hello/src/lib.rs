//! The command of WASI 0.3: writes through `wasi:cli/stdout`'s stream. With the argument `fail` it returns an error,
//! with `sleep` it waits a second on `wasi:clocks` first.

wasip3::cli::command::export!(Command);

struct Command;

impl wasip3::exports::cli::run::Guest for Command {
    async fn run() -> Result<(), ()> {
        let arguments = wasip3::cli::environment::get_arguments();
        let verb = arguments.get(1).map(String::as_str);
        if verb == Some("sleep") {
            wasip3::clocks::monotonic_clock::wait_for(1_000_000_000).await;
        }
        print(b"hello from WASI 0.3\n").await;
        if verb == Some("fail") { Err(()) } else { Ok(()) }
    }
}

async fn print(text: &[u8]) {
    let (mut writer, reader) = wasip3::wit_stream::new();
    let outcome = wasip3::cli::stdout::write_via_stream(reader);
    writer.write_all(text.to_vec()).await;
    drop(writer);
    outcome.await.expect("standard output takes the text");
}
