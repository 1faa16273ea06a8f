//! The pod in the options of CreateSandbox, a `runtime.v1.PodSandboxConfig` of the CRI, by its field numbers.
//! <https://github.com/kubernetes/cri-api/blob/v0.37.0/pkg/apis/runtime/v1/api.proto>

use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{Message, UnknownValueRef};

use crate::error::{Error, Result};
use crate::spec::pod::{Dns, PodConfig};

const TYPE: &str = "runtime.v1.PodSandboxConfig";
/// The API server keeps all annotations of a pod under 256 KiB.
const MAX_BYTES: usize = 1 << 20;
/// `NamespaceMode`: a user namespace of the pod's own.
const POD: u64 = 0;
/// `NamespaceMode`: the node's namespace.
const NODE: u64 = 2;

/// Reads the options of CreateSandbox.
///
/// # Errors
/// `Invalid` for what is not a pod of the CRI.
pub(super) fn decode(options: &Any) -> Result<PodConfig> {
    if options.type_url.rsplit('/').next() != Some(TYPE) {
        return Err(Error::invalid(format!(
            "the options of the sandbox are of type `{}`, not `{TYPE}`",
            options.type_url
        )));
    }
    if options.value.len() > MAX_BYTES {
        let size = options.value.len();
        return Err(Error::invalid(format!(
            "the description of the pod has {size} bytes; at most {MAX_BYTES} are read"
        )));
    }
    let pod = Fields::parse(&options.value)?;
    let metadata = pod.message(1)?;
    let linux = pod.message(8)?;
    let namespaces = linux.message(2)?.message(1)?;
    Ok(PodConfig {
        name: metadata.text(1)?,
        namespace: metadata.text(3)?,
        hostname: pod.text(2)?,
        dns: if pod.has(4) { Some(dns(&pod.message(4)?)?) } else { None },
        cgroup_parent: linux.text(1)?,
        sysctls: linux.texts_by_key(3)?,
        has_nodes_network: namespaces.number(1) == NODE,
        has_nodes_pids: namespaces.number(2) == NODE,
        has_nodes_ipc: namespaces.number(3) == NODE,
        has_own_users: namespaces.has(5) && namespaces.message(5)?.number(1) == POD,
    })
}

fn dns(fields: &Fields) -> Result<Dns> {
    Ok(Dns { servers: fields.texts(1)?, searches: fields.texts(2)?, options: fields.texts(3)? })
}

/// A message whose type is not known here: all of its fields are unknown ones of an empty message. Fields of another type than
/// expected count as absent, as always in protobuf.
struct Fields(Empty);

impl Fields {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let parsed = Empty::parse_from_bytes(bytes);
        parsed.map(Self).map_err(|error| Error::invalid(format!("cannot parse the description of the pod: {error}")))
    }

    fn values(&self, number: u32) -> impl Iterator<Item = UnknownValueRef<'_>> {
        let fields = self.0.special_fields.unknown_fields().iter();
        fields.filter_map(move |(found, value)| (found == number).then_some(value))
    }

    fn bytes(&self, number: u32) -> impl Iterator<Item = &[u8]> {
        self.values(number).filter_map(|value| match value {
            UnknownValueRef::LengthDelimited(bytes) => Some(bytes),
            UnknownValueRef::Varint(_) | UnknownValueRef::Fixed32(_) | UnknownValueRef::Fixed64(_) => None,
        })
    }

    fn has(&self, number: u32) -> bool {
        self.values(number).next().is_some()
    }

    /// A message in a field, empty if it is absent. Parts of one are merged by being read one after the other.
    fn message(&self, number: u32) -> Result<Self> {
        Self::parse(&self.bytes(number).collect::<Vec<_>>().concat())
    }

    fn texts(&self, number: u32) -> Result<Vec<String>> {
        self.bytes(number).map(text_of).collect()
    }

    fn text(&self, number: u32) -> Result<String> {
        self.bytes(number).last().map_or(Ok(String::new()), text_of)
    }

    /// A map, which is a list of messages with key and value.
    fn texts_by_key<M: FromIterator<(String, String)>>(&self, number: u32) -> Result<M> {
        let entry = |bytes| Self::parse(bytes).and_then(|entry| Ok((entry.text(1)?, entry.text(2)?)));
        self.bytes(number).map(entry).collect()
    }

    fn number(&self, number: u32) -> u64 {
        let numbers = self.values(number).filter_map(|value| match value {
            UnknownValueRef::Varint(number) => Some(number),
            UnknownValueRef::LengthDelimited(_) | UnknownValueRef::Fixed32(_) | UnknownValueRef::Fixed64(_) => None,
        });
        numbers.last().unwrap_or_default()
    }
}

fn text_of(bytes: &[u8]) -> Result<String> {
    let text = String::from_utf8(bytes.into());
    text.map_err(|_| Error::invalid("the description of the pod has a text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A field with bytes in it.
    fn field(number: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
        let content = content.as_ref();
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
    }

    fn enumeration(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn options(value: Vec<u8>) -> Any {
        Any { type_url: TYPE.into(), value, ..Any::default() }
    }

    fn with_namespaces(namespaces: Vec<u8>) -> PodConfig {
        decode(&options(field(8, field(2, field(1, namespaces))))).unwrap()
    }

    #[test]
    fn a_pod_is_read_by_the_numbers_of_its_fields() {
        let metadata = [field(1, "web"), field(2, "uid"), field(3, "shop"), enumeration(4, 1)].concat();
        let dns = [field(1, "10.0.0.1"), field(1, "10.0.0.2"), field(2, "a.test"), field(3, "ndots:5")].concat();
        let sysctl = [field(1, "kernel.msgmax"), field(2, "4096")].concat();
        let linux = [field(1, "/kubepods/pod1"), field(3, sysctl)].concat();
        let label = [field(1, "app"), field(2, "web")].concat();
        let pod = [field(1, metadata), field(2, "web-1"), field(4, dns), field(6, label), field(8, linux)].concat();
        let expected = PodConfig {
            name: "web".into(),
            namespace: "shop".into(),
            hostname: "web-1".into(),
            dns: Some(Dns {
                servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
                searches: vec!["a.test".into()],
                options: vec!["ndots:5".into()],
            }),
            cgroup_parent: "/kubepods/pod1".into(),
            sysctls: BTreeMap::from([("kernel.msgmax".into(), "4096".into())]),
            ..PodConfig::default()
        };
        assert_eq!(decode(&options(pod)).unwrap(), expected);
    }

    #[test]
    fn what_is_absent_is_the_default() {
        assert_eq!(decode(&options(Vec::new())).unwrap(), PodConfig::default());
        assert_eq!(
            decode(&options(field(4, ""))).unwrap().dns,
            Some(Dns::default()),
            "an empty resolver is not the node's"
        );
    }

    #[test]
    fn the_nodes_namespaces_are_told_from_the_pods() {
        let node = [enumeration(1, 2), enumeration(2, 2), enumeration(3, 2), field(5, enumeration(1, 2))].concat();
        let expected =
            PodConfig { has_nodes_network: true, has_nodes_pids: true, has_nodes_ipc: true, ..PodConfig::default() };
        assert_eq!(with_namespaces(node), expected);
        let own = [enumeration(2, 1), field(5, field(2, ""))].concat();
        assert_eq!(with_namespaces(own), PodConfig { has_own_users: true, ..PodConfig::default() });
    }

    #[test]
    fn parts_of_a_message_are_merged_and_the_last_value_counts() {
        let pod = [field(8, field(1, "/a")), field(2, "first"), field(8, field(1, "/b")), field(2, "last")].concat();
        let read = decode(&options(pod)).unwrap();
        assert_eq!((read.cgroup_parent.as_str(), read.hostname.as_str()), ("/b", "last"));
    }

    #[test]
    fn what_is_not_a_pod_is_refused_in_a_sentence() {
        for (options, expected) in [
            (Any::default(), "the options of the sandbox are of type ``, not `runtime.v1.PodSandboxConfig`"),
            (options(vec![0x12, 9, b'x']), "cannot parse the description of the pod: "),
            (options(field(2, [0xff])), "the description of the pod has a text that is not UTF-8"),
            (options(vec![0; MAX_BYTES + 1]), "the description of the pod has 1048577 bytes; at most 1048576 are read"),
        ] {
            let error = decode(&options).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
