//! The environment of a guest. Pure: pairs in, variables out.

use std::collections::HashSet;

/// Of the engine's own environment only this variable matters, which the container's runtime adds.
pub(crate) const HOME: &str = "HOME";

/// The guest's environment from `NAME=value` pairs. The last value of a name counts; `home` is added if there is no `HOME`,
/// and `PWD` if nothing else shows a guest of WASI 0.1 its working directory.
pub(crate) fn guest_environment(pairs: Vec<String>, home: Option<String>, cwd: &str) -> Vec<(String, String)> {
    let mut seen = HashSet::new();
    let mut variables: Vec<(String, String)> = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        if let Some((name, value)) = split(pair)
            && seen.insert(name)
        {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    variables.reverse();
    if let Some(home) = home.filter(|_| !seen.contains(HOME)) {
        variables.push((HOME.to_owned(), home));
    }
    if cwd != "/" && !seen.contains("PWD") {
        variables.push(("PWD".to_owned(), cwd.to_owned()));
    }
    variables
}

/// Name and value. A name has at least one character, which may be `=`. A pair without a value is not a variable.
fn split(pair: &str) -> Option<(&str, &str)> {
    let first = pair.chars().next()?.len_utf8();
    let at = first + pair.get(first..)?.find('=')?;
    Some((pair.get(..at)?, pair.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[&str], home: Option<&str>, cwd: &str, expected: &[(&str, &str)]) {
        let pairs = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        let found = guest_environment(pairs, home.map(str::to_owned), cwd);
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_last_value_of_a_name_wins() {
        check(&[], None, "/", &[]);
        check(&["A=1", "B=2", "A=3"], None, "/", &[("B", "2"), ("A", "3")]);
        check(&["A=1"], None, "/work", &[("A", "1"), ("PWD", "/work")]);
        check(&["PWD=/here"], None, "/work", &[("PWD", "/here")]);
        check(&["A=", "B=x=y", "C", "=", "=D=1", ""], None, "/", &[("A", ""), ("B", "x=y"), ("=D", "1")]);
    }

    #[test]
    fn home_is_the_runtimes_where_the_container_has_none() {
        check(&["A=1"], Some("/root"), "/", &[("A", "1"), ("HOME", "/root")]);
        check(&["HOME=/mine"], Some("/root"), "/", &[("HOME", "/mine")]);
    }
}
