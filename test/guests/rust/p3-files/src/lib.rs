//! Files through WASI 0.3: each argument is a step, `VERB:PATH[=TEXT]`. It prints `VERB PATH: ` and what came of it.
//! Verbs: directories read write list count stat touch touch-open mkdir rmdir remove readlink, and with a second path as
//! TEXT: rename link symlink.

use wasip3::filesystem::preopens::get_directories;
use wasip3::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, NewTimestamp, OpenFlags, PathFlags};

wasip3::cli::command::export!(Command);

struct Command;

impl wasip3::exports::cli::run::Guest for Command {
    async fn run() -> Result<(), ()> {
        let directories = get_directories();
        for step in wasip3::cli::environment::get_arguments().iter().skip(1) {
            let (verb, rest) = step.split_once(':').expect("a verb and a path");
            let (path, text) = rest.split_once('=').unwrap_or((rest, ""));
            let outcome = if verb == "directories" {
                Ok(directories.iter().map(|(_, path)| path.as_str()).collect::<Vec<_>>().join(" "))
            } else {
                step_of(&directories[0].0, verb, path.trim_start_matches('/'), text).await
            };
            let outcome = outcome.unwrap_or_else(|code| format!("{code:?}"));
            print(format!("{verb} {path}: {outcome}\n").into_bytes()).await;
        }
        Ok(())
    }
}

async fn step_of(root: &Descriptor, verb: &str, path: &str, text: &str) -> Result<String, ErrorCode> {
    let done = |()| String::new();
    let follow = PathFlags::SYMLINK_FOLLOW;
    let path = path.to_owned();
    let open = |flags, mode| root.open_at(follow, path.clone(), flags, mode);
    let other = text.trim_start_matches('/').to_owned();
    let (one, two) = (NewTimestamp::Now, NewTimestamp::Now);
    match verb {
        "read" => {
            let file = open(OpenFlags::empty(), DescriptorFlags::READ).await?;
            let (stream, outcome) = file.read_via_stream(0);
            let bytes = stream.collect().await;
            outcome.await?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "write" => {
            let file = open(OpenFlags::CREATE | OpenFlags::TRUNCATE, DescriptorFlags::WRITE).await?;
            let (mut writer, reader) = wasip3::wit_stream::new();
            let outcome = file.write_via_stream(reader, 0);
            writer.write_all(text.as_bytes().to_vec()).await;
            drop(writer);
            outcome.await.map(done)
        }
        "list" | "count" => {
            let directory = open(OpenFlags::DIRECTORY, DescriptorFlags::READ).await?;
            let (stream, outcome) = directory.read_directory();
            let mut names: Vec<String> = stream.collect().await.into_iter().map(|entry| entry.name).collect();
            outcome.await?;
            names.sort();
            Ok(if verb == "list" { names.join(" ") } else { names.len().to_string() })
        }
        "stat" => {
            let status = root.stat_at(PathFlags::empty(), path).await?;
            Ok(format!("{:?} {}", status.type_, status.size))
        }
        "touch" => root.set_times_at(follow, path, one, two).await.map(done),
        "touch-open" => {
            open(OpenFlags::empty(), DescriptorFlags::READ).await?.set_times(one, two).await.map(done)
        }
        "mkdir" => root.create_directory_at(path).await.map(done),
        "rmdir" => root.remove_directory_at(path).await.map(done),
        "remove" => root.unlink_file_at(path).await.map(done),
        "readlink" => root.readlink_at(path).await,
        "rename" => root.rename_at(path, root, other).await.map(done),
        "link" => root.link_at(PathFlags::empty(), path, root, other).await.map(done),
        "symlink" => root.symlink_at(text.to_owned(), path).await.map(done),
        _ => Err(ErrorCode::Unsupported),
    }
}

async fn print(text: Vec<u8>) {
    let (mut writer, reader) = wasip3::wit_stream::new();
    let outcome = wasip3::cli::stdout::write_via_stream(reader);
    writer.write_all(text).await;
    drop(writer);
    outcome.await.expect("standard output takes the text");
}
