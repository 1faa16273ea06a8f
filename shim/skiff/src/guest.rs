//! What a wasm binary is, imports and exports: read and validated, neither compiled nor run.

use serde::Serialize;
use skiff_protocol::interfaces::{is_command, is_server};
use wasmparser::component_types::ComponentEntityType;
use wasmparser::types::Types;
use wasmparser::{
    ComponentExternalKind, ComponentTypeRef, ExternalKind, MemoryType, Parser, Payload, TypeRef, Validator,
};

use crate::compile::explain_invalid;
use crate::error::{Error, Result};
use crate::preamble::{Kind, kind_of};

/// A valid wasm binary.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Module or component.
    pub(crate) kind: Kind,
    /// What it needs.
    pub(crate) imports: Vec<Import>,
    /// What it offers.
    pub(crate) exports: Vec<Export>,
    /// The linear memories, including those of the modules in a component.
    pub(crate) memories: Vec<Memory>,
}

/// Something that a guest imports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Import {
    /// The module that a core module imports from; components import by one name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) module: Option<String>,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
}

/// Something that a guest exports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Export {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    /// How many parameters it takes, if it is a function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parameters: Option<usize>,
}

/// A linear memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    pub(crate) initial_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) maximum_bytes: Option<u64>,
    pub(crate) shared: bool,
    pub(crate) memory64: bool,
}

/// How a guest is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Entry {
    /// It runs from `_start` or `wasi:cli/run` to its end.
    Command,
    /// It serves HTTP requests.
    Http,
    /// Its functions can only be called by name.
    Reactor,
}

impl Guest {
    /// Reads the wasm binary `bytes`, which messages call `name`.
    ///
    /// # Errors
    /// The guest's fault if it is not valid wasm.
    pub(crate) fn read(bytes: &[u8], name: &str) -> Result<Self> {
        let kind = kind_of(bytes, name)?;
        let invalid = |error: wasmparser::BinaryReaderError| {
            Error::guest(explain_invalid(bytes, error.message(), error.offset(), name))
        };
        let types = Validator::new().validate_all(bytes).map_err(invalid)?;
        let mut guest = Self { kind, imports: Vec::new(), exports: Vec::new(), memories: Vec::new() };
        // How many modules and components the parser is in.
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(invalid)? {
                Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                payload => guest.add(&payload, depth == 1, &types).map_err(invalid)?,
            }
        }
        Ok(guest)
    }

    fn add(&mut self, payload: &Payload<'_>, is_outermost: bool, types: &Types) -> wasmparser::Result<()> {
        match payload {
            Payload::MemorySection(memories) => {
                for memory in memories.clone() {
                    self.memories.push(Memory::of(&memory?));
                }
            }
            Payload::ImportSection(imports) if is_outermost => {
                for import in imports.clone().into_imports() {
                    let import = import?;
                    if let TypeRef::Memory(memory) = import.ty {
                        self.memories.push(Memory::of(&memory));
                    }
                    let (module, kind) = (Some(import.module.into()), kind_of_import(&import.ty));
                    self.imports.push(Import { module, name: import.name.into(), kind });
                }
            }
            Payload::ExportSection(exports) if is_outermost => {
                for export in exports.clone() {
                    let export = export?;
                    let parameters = parameters_of_export(&export, types);
                    self.exports.push(Export {
                        name: export.name.into(),
                        kind: kind_of_export(export.kind),
                        parameters,
                    });
                }
            }
            Payload::ComponentImportSection(imports) if is_outermost => {
                for import in imports.clone() {
                    let import = import?;
                    let kind = kind_of_component_import(&import.ty);
                    self.imports.push(Import { module: None, name: import.name.name.into(), kind });
                }
            }
            Payload::ComponentExportSection(exports) if is_outermost => {
                for export in exports.clone() {
                    let export = export?;
                    let (kind, parameters) =
                        (kind_of_component_item(export.kind), parameters_of_item(export.name.name, types));
                    self.exports.push(Export { name: export.name.name.into(), kind, parameters });
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The export `name`.
    pub(crate) fn export(&self, name: &str) -> Option<&Export> {
        self.exports.iter().find(|export| export.name == name)
    }

    /// How it is started.
    pub(crate) fn entry(&self) -> Entry {
        let exports = |is_it: fn(&str) -> bool| self.exports.iter().any(|export| is_it(&export.name));
        match self.kind {
            Kind::Module if exports(|name| name == "_start") => Entry::Command,
            Kind::Module => Entry::Reactor,
            Kind::Component if exports(is_server) => Entry::Http,
            Kind::Component if exports(is_command) => Entry::Command,
            Kind::Component => Entry::Reactor,
        }
    }
}

impl Memory {
    fn of(memory: &MemoryType) -> Self {
        let page_bytes = 1_u64 << memory.page_size_log2.unwrap_or(16).min(16);
        Self {
            initial_bytes: memory.initial.saturating_mul(page_bytes),
            maximum_bytes: memory.maximum.map(|pages| pages.saturating_mul(page_bytes)),
            shared: memory.shared,
            memory64: memory.memory64,
        }
    }
}

fn parameters_of_export(export: &wasmparser::Export<'_>, types: &Types) -> Option<usize> {
    match export.kind {
        ExternalKind::Func | ExternalKind::FuncExact => {
            Some(types[types.as_ref().core_function_at(export.index)].unwrap_func().params().len())
        }
        ExternalKind::Table | ExternalKind::Memory | ExternalKind::Global | ExternalKind::Tag => None,
    }
}

fn parameters_of_item(name: &str, types: &Types) -> Option<usize> {
    match types.component_item_for_export(name)?.ty {
        ComponentEntityType::Func(id) => Some(types[id].params.len()),
        _ => None,
    }
}

const fn kind_of_import(kind: &TypeRef) -> &'static str {
    match kind {
        TypeRef::Func(_) | TypeRef::FuncExact(_) => "function",
        TypeRef::Table(_) => "table",
        TypeRef::Memory(_) => "memory",
        TypeRef::Global(_) => "global",
        TypeRef::Tag(_) => "tag",
    }
}

const fn kind_of_export(kind: ExternalKind) -> &'static str {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => "function",
        ExternalKind::Table => "table",
        ExternalKind::Memory => "memory",
        ExternalKind::Global => "global",
        ExternalKind::Tag => "tag",
    }
}

fn kind_of_component_import(kind: &ComponentTypeRef) -> &'static str {
    kind_of_component_item(kind.kind())
}

const fn kind_of_component_item(kind: ComponentExternalKind) -> &'static str {
    match kind {
        ComponentExternalKind::Module => "module",
        ComponentExternalKind::Func => "function",
        ComponentExternalKind::Value => "value",
        ComponentExternalKind::Type => "type",
        ComponentExternalKind::Instance => "interface",
        ComponentExternalKind::Component => "component",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{many, mutated};

    fn guest(text: &str) -> Guest {
        Guest::read(&wat::parse_str(text).unwrap(), "a").unwrap()
    }

    #[test]
    fn an_entry_is_known_by_its_export() {
        let check = |text, entry| assert_eq!(guest(text).entry(), entry, "{text}");
        check("(module (func (export \"_start\")))", Entry::Command);
        check("(module (func (export \"_initialize\")))", Entry::Reactor);
        check("(component)", Entry::Reactor);
        check(r#"(component (instance $i) (export "wasi:cli/run@0.2.3" (instance $i)))"#, Entry::Command);
        check(r#"(component (instance $i) (export "wasi:cli/run@0.3.0" (instance $i)))"#, Entry::Command);
        check(r#"(component (instance $i) (export "wasi:http/incoming-handler@0.2.10" (instance $i)))"#, Entry::Http);
        check(r#"(component (instance $i) (export "wasi:http/handler@0.3.0" (instance $i)))"#, Entry::Http);
    }

    #[test]
    fn the_modules_in_a_component_do_not_add_imports_but_memories() {
        let guest = guest(
            r#"(component
                (import "a:b/c@1.0.0" (instance))
                (core module (import "x" "y" (func)) (memory (export "memory") 2 4) (func (export "z")))
            )"#,
        );
        let import = Import { module: None, name: "a:b/c@1.0.0".into(), kind: "interface" };
        assert_eq!(guest.imports, [import]);
        assert!(guest.exports.is_empty());
        let memory = Memory { initial_bytes: 131_072, maximum_bytes: Some(262_144), shared: false, memory64: false };
        assert_eq!(guest.memories, [memory]);
    }

    #[test]
    fn a_broken_binary_is_refused_as_the_compiler_refuses_it() {
        let bytes = wat::parse_str("(module (func (result i32)))").unwrap();
        let sentence = Guest::read(&bytes, "a").unwrap_err().to_string();
        assert_eq!(sentence, crate::compile::compile(&bytes, "a").unwrap_err().to_string());
    }

    /// A module and a component with every kind of section that is looked at.
    fn originals() -> Vec<Vec<u8>> {
        let module = r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1 2) (table (export "t") 1 funcref) (global (export "g") i32 (i32.const 0))
            (func (export "_start") (drop (i32.const 1))) (data (i32.const 0) "text"))"#;
        let component = r#"(component
            (import "a:b/c@1.0.0" (instance (export "f" (func (param "x" string)))))
            (core module (import "x" "y" (func)) (memory (export "memory") 2 4) (func (export "z")))
            (instance $i) (export "wasi:cli/run@0.2.3" (instance $i)))"#;
        [module, component].map(|text| wat::parse_str(text).unwrap()).into()
    }

    proptest! {
        #![proptest_config(many())]

        #[test]
        fn any_broken_binary_is_read_or_refused_in_one_sentence(bytes in mutated(&originals())) {
            match Guest::read(&bytes, "a") {
                Ok(guest) => prop_assert!(guest.imports.len() + guest.exports.len() + guest.memories.len() <= bytes.len()),
                Err(error) => prop_assert!(error.to_string().starts_with("`a` ")),
            }
        }

        #[test]
        fn any_bytes_behind_a_preamble_are_read_or_refused_in_one_sentence(
            is_component in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 0..256)
        ) {
            let preamble: &[u8] = if is_component { b"\0asm\x0d\0\x01\0" } else { b"\0asm\x01\0\0\0" };
            if let Err(error) = Guest::read(&[preamble, &bytes].concat(), "a") {
                prop_assert!(error.to_string().starts_with("`a` "));
            }
        }
    }
}
