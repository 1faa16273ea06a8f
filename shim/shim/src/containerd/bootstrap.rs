//! How containerd starts a shim, and how the shim answers.
//!
//! containerd 2.3 and later write `BootstrapParams` to standard input and read a `BootstrapResult`; earlier ones pass
//! flags, the environment and perhaps the runtime options, and read JSON.
//! <https://github.com/containerd/containerd/blob/main/docs/runtime-v2.md#bootstrap-protocol-23>

use std::io::{IsTerminal, Read};

use containerd_shim::Flags;
use containerd_shim::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use containerd_shim::protos::TASK_API_VERSION;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::error::{Context, Error, Result};

/// The most that is read from standard input, in bytes; containerd's own limit.
const INPUT_MAX: u64 = 10 << 20;

/// Which of the two ways containerd used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Bootstrap,
    Legacy,
}

/// The environment that the legacy way uses.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    pub(super) ttrpc_address: String,
    pub(super) grpc_address: String,
}

impl Environment {
    pub(super) fn of_process() -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        Self { ttrpc_address: variable("TTRPC_ADDRESS"), grpc_address: variable("GRPC_ADDRESS") }
    }
}

/// Reads what containerd has written to standard input.
pub(super) fn read_input() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        stdin.lock().take(INPUT_MAX).read_to_end(&mut input).doing(|| "cannot read standard input".into())?;
    }
    Ok(input)
}

/// Turns both ways into one form.
///
/// # Errors
/// `Invalid` when the parameters are another shim's, or name no socket to publish events to.
pub(super) fn parse(input: &[u8], flags: &Flags, env: Environment) -> Result<(BootstrapParams, Protocol)> {
    let (params, protocol) = match bootstrap_params(input, flags)? {
        Some(params) => (params, Protocol::Bootstrap),
        None => (legacy_params(input, flags, env), Protocol::Legacy),
    };
    if params.containerd_ttrpc_address.is_empty() {
        return Err(Error::invalid("containerd passed no address to publish events to (`TTRPC_ADDRESS`)"));
    }
    Ok((params, protocol))
}

fn bootstrap_params(input: &[u8], flags: &Flags) -> Result<Option<BootstrapParams>> {
    if input.is_empty() {
        return Ok(None);
    }
    let Ok(params) = BootstrapParams::parse_from_bytes(input) else { return Ok(None) };
    if params.instance_id == flags.id && params.namespace == flags.namespace {
        return Ok(Some(params));
    }
    // The legacy runtime options are a message with the same two first fields, and no others.
    let first_two = BootstrapParams {
        instance_id: params.instance_id.clone(),
        namespace: params.namespace.clone(),
        ..Default::default()
    };
    if params == first_two {
        return Ok(None);
    }
    Err(Error::invalid(format!(
        "the parameters are for `{}/{}`, but the flags are for `{}/{}`",
        params.namespace, params.instance_id, flags.namespace, flags.id
    )))
}

fn legacy_params(input: &[u8], flags: &Flags, env: Environment) -> BootstrapParams {
    let grpc = if flags.address.is_empty() { env.grpc_address } else { flags.address.clone() };
    let mut params = BootstrapParams {
        instance_id: flags.id.clone(),
        namespace: flags.namespace.clone(),
        containerd_ttrpc_address: env.ttrpc_address,
        containerd_grpc_address: grpc,
        containerd_binary: flags.publish_binary.clone(),
        ..BootstrapParams::default()
    };
    if let Ok(options) = Any::parse_from_bytes(input)
        && !options.type_url.is_empty()
    {
        params.extensions.push(Extension { value: Some(options).into(), ..Extension::default() });
    }
    params
}

/// The answer to `start`: where the shim listens.
pub(super) fn answer(address: &str, protocol: Protocol) -> Result<Vec<u8>> {
    match protocol {
        Protocol::Legacy => Ok(serde_json::json!({
            "version": TASK_API_VERSION, "address": address, "protocol": "ttrpc",
        })
        .to_string()
        .into_bytes()),
        Protocol::Bootstrap => BootstrapResult {
            version: TASK_API_VERSION,
            address: address.into(),
            protocol: "ttrpc".into(),
            ..BootstrapResult::default()
        }
        .write_to_bytes()
        .doing(|| "cannot encode the response".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags { id: "c1".into(), namespace: "k8s.io".into(), address: "/grpc".into(), ..Flags::default() }
    }

    fn env() -> Environment {
        Environment { ttrpc_address: "/ttrpc".into(), grpc_address: "/other".into() }
    }

    fn params() -> BootstrapParams {
        BootstrapParams {
            instance_id: "c1".into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "/new".into(),
            ..BootstrapParams::default()
        }
    }

    #[test]
    fn parameters_on_standard_input_win() {
        let (read, protocol) = parse(&params().write_to_bytes().unwrap(), &flags(), env()).unwrap();
        assert_eq!((read.containerd_ttrpc_address.as_str(), protocol), ("/new", Protocol::Bootstrap));
    }

    #[test]
    fn flags_and_environment_are_the_legacy_way() {
        let options = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![0x1a, 0], ..Any::default() };
        for input in [Vec::new(), options.write_to_bytes().unwrap()] {
            let (read, protocol) = parse(&input, &flags(), env()).unwrap();
            assert_eq!((read.containerd_ttrpc_address.as_str(), protocol), ("/ttrpc", Protocol::Legacy));
            assert_eq!(read.containerd_grpc_address, "/grpc");
            assert_eq!(read.extensions.len(), usize::from(!input.is_empty()));
        }
    }

    #[test]
    fn another_shims_parameters_are_refused() {
        let other = BootstrapParams { instance_id: "c2".into(), ..params() };
        let error = parse(&other.write_to_bytes().unwrap(), &flags(), env()).unwrap_err();
        assert!(error.to_string().contains("`k8s.io/c2`"), "{error}");
    }

    #[test]
    fn events_need_an_address() {
        assert!(parse(&[], &flags(), Environment::default()).is_err());
    }

    #[test]
    fn the_answer_says_version_3() {
        let text = String::from_utf8(answer("unix:///s", Protocol::Legacy).unwrap()).unwrap();
        assert_eq!(text, r#"{"address":"unix:///s","protocol":"ttrpc","version":3}"#);
        let result = BootstrapResult::parse_from_bytes(&answer("unix:///s", Protocol::Bootstrap).unwrap()).unwrap();
        assert_eq!((result.version, result.address.as_str()), (3, "unix:///s"));
    }
}
