//! Files through WASI 0.2: each argument is a step, `VERB:PATH[=TEXT]`. It prints `VERB PATH: ` and what came of it.
//! Verbs: directories read write list count stat touch touch-open mkdir rmdir remove readlink, and with a second path as
//! TEXT: rename link symlink.

use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, NewTimestamp, OpenFlags, PathFlags};

fn main() {
    let directories = get_directories();
    for step in std::env::args().skip(1) {
        let (verb, rest) = step.split_once(':').expect("a verb and a path");
        let (path, text) = rest.split_once('=').unwrap_or((rest, ""));
        let root = &directories[0].0;
        let outcome = if verb == "directories" {
            Ok(directories.iter().map(|(_, path)| path.as_str()).collect::<Vec<_>>().join(" "))
        } else {
            run(root, verb, path.trim_start_matches('/'), text)
        };
        println!("{verb} {path}: {}", outcome.unwrap_or_else(|code| format!("{code:?}")));
    }
}

fn run(root: &Descriptor, verb: &str, path: &str, text: &str) -> Result<String, ErrorCode> {
    let done = |()| String::new();
    let follow = PathFlags::SYMLINK_FOLLOW;
    let open = |flags, mode| root.open_at(follow, path, flags, mode);
    let other = text.trim_start_matches('/');
    let (one, two) = (NewTimestamp::Now, NewTimestamp::Now);
    match verb {
        "read" => {
            let (bytes, _) = open(OpenFlags::empty(), DescriptorFlags::READ)?.read(4096, 0)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "write" => {
            let file = open(OpenFlags::CREATE | OpenFlags::TRUNCATE, DescriptorFlags::WRITE)?;
            file.write(text.as_bytes(), 0).map(|_| String::new())
        }
        "list" | "count" => {
            let names = names(&open(OpenFlags::DIRECTORY, DescriptorFlags::READ)?)?;
            Ok(if verb == "list" { names.join(" ") } else { names.len().to_string() })
        }
        "stat" => root.stat_at(PathFlags::empty(), path).map(|status| format!("{:?} {}", status.type_, status.size)),
        "touch" => root.set_times_at(follow, path, one, two).map(done),
        "touch-open" => open(OpenFlags::empty(), DescriptorFlags::READ)?.set_times(one, two).map(done),
        "mkdir" => root.create_directory_at(path).map(done),
        "rmdir" => root.remove_directory_at(path).map(done),
        "remove" => root.unlink_file_at(path).map(done),
        "readlink" => root.readlink_at(path),
        "rename" => root.rename_at(path, root, other).map(done),
        "link" => root.link_at(PathFlags::empty(), path, root, other).map(done),
        "symlink" => root.symlink_at(text, path).map(done),
        _ => Err(ErrorCode::Unsupported),
    }
}

fn names(directory: &Descriptor) -> Result<Vec<String>, ErrorCode> {
    let stream = directory.read_directory()?;
    let mut names = Vec::new();
    while let Some(entry) = stream.read_directory_entry()? {
        names.push(entry.name);
    }
    names.sort();
    Ok(names)
}
