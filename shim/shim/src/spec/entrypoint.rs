//! Where the program of a container may be: the paths that its first argument can mean.

use std::path::{Path, PathBuf};

/// What a first argument can mean: a file, and an export of it to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// An absolute path in the container.
    pub(crate) path: PathBuf,
    /// The export after `#`.
    pub(crate) function: Option<String>,
}

/// The meanings of `argument`, the likeliest first. A name with a slash is a path, seen from `cwd`; one without is looked
/// for in `PATH` and then in `cwd`. `module.wasm#function` means the file of this name, or the export of `module.wasm`.
pub(crate) fn candidates(argument: &str, cwd: &Path, env: &[String]) -> Vec<Candidate> {
    let mut found = paths(argument, cwd, env, None);
    if let (module, Some(function)) = split_function(argument) {
        found.extend(paths(module, cwd, env, Some(function)));
    }
    found
}

/// Splits `module#function`, where the part after the last `#` is a function.
pub(crate) fn split_function(argument: &str) -> (&str, Option<&str>) {
    match argument.rsplit_once('#') {
        Some((module, function)) if !module.is_empty() && !function.is_empty() => (module, Some(function)),
        _ => (argument, None),
    }
}

fn paths(name: &str, cwd: &Path, env: &[String], function: Option<&str>) -> Vec<Candidate> {
    let mut directories = Vec::new();
    if !name.contains('/') {
        let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default();
        directories.extend(path.split(':').filter(|directory| !directory.is_empty()).map(PathBuf::from));
    }
    directories.push(cwd.to_path_buf());
    let candidate =
        |directory: PathBuf| Candidate { path: cwd.join(directory).join(name), function: function.map(str::to_string) };
    directories.into_iter().map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(argument: &str, expected: &[(&str, Option<&str>)]) {
        let env = ["PATH=/first".to_string(), "PATH=/usr/bin:/bin".to_string()];
        let found = candidates(argument, Path::new("/work"), &env);
        let found: Vec<_> = found.iter().map(|c| (c.path.to_str().unwrap(), c.function.as_deref())).collect();
        assert_eq!(found, expected, "{argument}");
    }

    #[test]
    fn a_first_argument_means_what_a_shell_would_take_it_for() {
        check("/app.wasm", &[("/app.wasm", None)]);
        check("./app.wasm", &[("/work/./app.wasm", None)]);
        check("dir/app", &[("/work/dir/app", None)]);
        check("app", &[("/usr/bin/app", None), ("/bin/app", None), ("/work/app", None)]);
    }

    #[test]
    fn a_hash_sign_names_an_export_unless_a_file_has_it() {
        check("/a.wasm#run", &[("/a.wasm#run", None), ("/a.wasm", Some("run"))]);
        check("/a#b#run", &[("/a#b#run", None), ("/a#b", Some("run"))]);
        check("/a#", &[("/a#", None)]);
    }
}
