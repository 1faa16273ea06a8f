//! An image's name, completed as container clients complete it, so that what was imported is found by a pod.

use std::fmt::{self, Display};

use crate::error::{Error, Result};

/// A name with registry and tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    name: String,
    tag: String,
}

impl Reference {
    /// Reads `NAME[:TAG]`: without a registry it is completed with `docker.io`, without a tag with `latest`.
    ///
    /// # Errors
    /// The caller's, if it has characters that registries do not accept.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, "latest"),
        };
        let (domain, path) = match name.split_once('/') {
            Some((first, rest)) if is_domain(first) => (first, rest.to_owned()),
            Some(_) => ("docker.io", name.to_owned()),
            None => ("docker.io", format!("library/{name}")),
        };
        if !path.split('/').all(is_component) || !is_tag(tag) {
            return Err(Error::guest(format!(
                "`{text}` is not an image name: write `[REGISTRY/]name[:tag]` in lower case"
            )));
        }
        Ok(Self { name: format!("{domain}/{path}"), tag: tag.into() })
    }

    /// A name made from a file's: `My App.wasm` becomes `docker.io/library/my-app:latest`.
    ///
    /// # Errors
    /// The caller's, if nothing in the name can be used.
    pub(super) fn of_file(file_name: &str) -> Result<Self> {
        let stem = file_name.rsplit_once('.').map_or(file_name, |(stem, _)| stem).to_ascii_lowercase();
        let words = stem.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        Self::parse(&words.collect::<Vec<_>>().join("-"))
    }

    /// The tag alone.
    pub(super) fn tag(&self) -> &str {
        &self.tag
    }
}

impl Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

/// Whether the first part of a name is a registry: it has a dot or a port, or is `localhost`.
fn is_domain(part: &str) -> bool {
    let is_plain = part.chars().all(|c| c.is_ascii_alphanumeric() || ".-:".contains(c));
    is_plain && part.starts_with(char::is_alphanumeric) && (part.contains(['.', ':']) || part == "localhost")
}

/// Whether registries accept `part` as one part of a path: words of lower-case letters and digits, joined by `.`, `_`, `__` or any
/// number of `-` (<https://github.com/distribution/reference/blob/main/regexp.go>).
fn is_component(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separators = part.split(is_word).filter(|separator| !separator.is_empty());
    let is_joined =
        separators.all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'));
    is_joined && part.starts_with(is_word) && part.ends_with(is_word)
}

fn is_tag(tag: &str) -> bool {
    let is_plain = tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    is_plain && !tag.is_empty() && tag.len() <= 128 && !tag.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_clients_complete_them() {
        let check = |text: &str, expected: &str| assert_eq!(Reference::parse(text).unwrap().to_string(), expected);
        check("hello", "docker.io/library/hello:latest");
        check("hello:1", "docker.io/library/hello:1");
        check("me/hello:1", "docker.io/me/hello:1");
        check("ghcr.io/me/hello", "ghcr.io/me/hello:latest");
        check("localhost:5000/hello:v1", "localhost:5000/hello:v1");
        check("localhost/hello", "localhost/hello:latest");
        check("a.b_c__d--e", "docker.io/library/a.b_c__d--e:latest");
    }

    #[test]
    fn names_that_no_registry_takes_are_refused() {
        for text in ["", "Hello", "a//b", "a:", "a:b c", "-a", "a@sha256:b", "../a", "a..b", "a.-b", "a___b", "a-", "é"]
        {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_gives_a_name() {
        assert_eq!(Reference::of_file("My App.v2.wasm").unwrap().to_string(), "docker.io/library/my-app-v2:latest");
        assert!(Reference::of_file(".wasm").is_err());
    }
}
