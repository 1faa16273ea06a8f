//! What of a guest can be called: its exported functions, with their types.

use std::collections::BTreeMap;
use std::fmt::Write;

use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::wasm_wave::wasm::DisplayType;
use wasmtime::component::{self, Component, ComponentExportIndex, Type};
use wasmtime::{Engine, ExternType, FuncType, InstancePre, Module, ValType};

use super::weight::bytes_per_fuel;
use crate::exports::{INITIALIZE, START};
use crate::shown::shown;
use crate::store::State;

/// How much of the type of one function is shown, in bytes, and how much of all of them.
const TYPE_BYTES_MAX: usize = 16 << 10;
const LIST_BYTES_MAX: usize = 64 << 10;
/// What the interfaces begin with that a host calls by itself.
const HOSTS_OWN: &str = "wasi:";

/// The code of a guest, linked.
#[derive(Clone)]
pub(crate) enum Code {
    /// A core module.
    Module(InstancePre<State>),
    /// A component.
    Component(component::InstancePre<State>),
}

impl Code {
    /// The engine that it runs in.
    pub(super) fn engine(&self) -> &Engine {
        match self {
            Self::Module(pre) => pre.module().engine(),
            Self::Component(pre) => pre.engine(),
        }
    }
}

/// The functions of a guest, by name.
pub(super) struct Functions(BTreeMap<String, Function>);

/// A function that a guest exports.
#[derive(Clone)]
pub(super) enum Function {
    /// Of a core module.
    Core(FuncType),
    /// Of a component.
    Component {
        /// Where it is.
        index: ComponentExportIndex,
        /// Its type.
        ty: ComponentFunc,
        /// The types of its parameters.
        parameters: Vec<Type>,
        /// What its results take at most for each unit of fuel.
        bytes_per_fuel: u64,
    },
}

/// Whether a core module exports anything that can be called.
pub(crate) fn module_has_some(module: &Module) -> bool {
    module.exports().any(|export| is_callable(export.name(), &export.ty()))
}

/// Whether a component exports anything that can be called.
pub(crate) fn component_has_some(component: &Component) -> bool {
    let engine = component.engine();
    component.component_type().exports(engine).any(|(name, export)| match export.ty {
        ComponentItem::ComponentFunc(_) => true,
        ComponentItem::ComponentInstance(instance) => {
            !name.starts_with(HOSTS_OWN)
                && instance.exports(engine).any(|(_, export)| matches!(export.ty, ComponentItem::ComponentFunc(_)))
        }
        _ => false,
    })
}

fn is_callable(name: &str, ty: &ExternType) -> bool {
    name != START && name != INITIALIZE && matches!(ty, ExternType::Func(_))
}

impl Functions {
    /// The functions of a guest.
    pub(super) fn of(code: &Code) -> Self {
        Self(match code {
            Code::Module(pre) => of_module(pre.module()),
            Code::Component(pre) => of_component(pre.component()),
        })
    }

    /// One function of a core module.
    #[cfg(test)]
    pub(super) fn core(name: &str, ty: FuncType) -> Self {
        Self(BTreeMap::from([(name.to_owned(), Function::Core(ty))]))
    }

    /// The function of this name.
    ///
    /// # Errors
    /// A sentence if there is none, or if it cannot be called.
    pub(super) fn find(&self, name: &str) -> Result<&Function, String> {
        let function = self.0.get(name).ok_or_else(|| self.unknown(name))?;
        match function.obstacle() {
            Some(what) => {
                Err(format!("`{}` cannot be called from outside: it takes or returns {what}", shown(name.as_bytes())))
            }
            None => Ok(function),
        }
    }

    /// Their types, one in each line: of all of them, or of as many as there is room for.
    pub(super) fn list(&self) -> String {
        let mut text = String::new();
        for (index, (name, function)) in self.0.iter().enumerate() {
            let Some(left_bytes) = LIST_BYTES_MAX.checked_sub(text.len()) else {
                text.push_str(&format!("… and {} more\n", self.0.len() - index));
                break;
            };
            let mut line = Bounded { text: &mut text, left_bytes: left_bytes.min(TYPE_BYTES_MAX) };
            // What does not fit ends the line.
            if function.describe(name, &mut line).is_err() {
                text.push('…');
            }
            text.push('\n');
        }
        text
    }

    fn unknown(&self, name: &str) -> String {
        let short = shown(name.get(..name.floor_char_boundary(100)).unwrap_or_default().as_bytes());
        match self.0.len() {
            0 => format!("there is no function `{short}`: this guest exports none that can be called"),
            _ => format!("there is no function `{short}`: `invoke` without an expression lists what there is"),
        }
    }
}

fn of_module(module: &Module) -> BTreeMap<String, Function> {
    let functions = module.exports().filter_map(|export| match export.ty() {
        ty if !is_callable(export.name(), &ty) => None,
        ExternType::Func(ty) => Some((export.name().to_owned(), Function::Core(ty))),
        _ => None,
    });
    functions.collect()
}

fn of_component(component: &Component) -> BTreeMap<String, Function> {
    let engine = component.engine();
    let mut functions = BTreeMap::new();
    for (name, export) in component.component_type().exports(engine) {
        let Some(index) = component.get_export_index(None, name) else { continue };
        match export.ty {
            ComponentItem::ComponentFunc(ty) => {
                functions.insert(name.to_owned(), Function::component(index, ty));
            }
            ComponentItem::ComponentInstance(instance) if !name.starts_with(HOSTS_OWN) => {
                for (inner, export) in instance.exports(engine) {
                    let ComponentItem::ComponentFunc(ty) = export.ty else { continue };
                    let Some(index) = component.get_export_index(Some(&index), inner) else { continue };
                    functions.insert(format!("{name}#{inner}"), Function::component(index, ty));
                }
            }
            _ => {}
        }
    }
    functions
}

impl Function {
    fn component(index: ComponentExportIndex, ty: ComponentFunc) -> Self {
        let parameters = ty.params().map(|(_, ty)| ty).collect();
        let bytes_per_fuel = ty.results().map(|ty| bytes_per_fuel(&ty)).max().unwrap_or(1);
        Self::Component { index, ty, parameters, bytes_per_fuel }
    }

    /// How many results it has.
    pub(super) fn results(&self) -> usize {
        match self {
            Self::Core(ty) => ty.results().len(),
            Self::Component { ty, .. } => ty.results().len(),
        }
    }

    /// What of its type has no text.
    fn obstacle(&self) -> Option<&'static str> {
        match self {
            Self::Core(ty) => ty.params().chain(ty.results()).find_map(|ty| match ty {
                ValType::I32 | ValType::I64 | ValType::F32 | ValType::F64 => None,
                ValType::V128 => Some("a vector"),
                ValType::Ref(_) => Some("a reference"),
            }),
            Self::Component { ty, parameters, .. } => {
                parameters.iter().cloned().chain(ty.results()).find_map(|ty| obstacle(&ty))
            }
        }
    }

    fn describe(&self, name: &str, out: &mut Bounded<'_>) -> std::fmt::Result {
        write!(out, "{}(", shown(name.as_bytes()))?;
        match self {
            Self::Core(ty) => each(out, ty.params(), |out, ty| write!(out, "{ty}"))?,
            Self::Component { ty, .. } => each(out, ty.params(), |out, (name, ty)| {
                write!(out, "{name}: ")?;
                describe_type(&ty, out)
            })?,
        }
        out.write_char(')')?;
        let [open, close] = match self.results() {
            0 => return Ok(()),
            1 => ["", ""],
            _ => ["(", ")"],
        };
        write!(out, " -> {open}")?;
        match self {
            Self::Core(ty) => each(out, ty.results(), |out, ty| write!(out, "{ty}"))?,
            Self::Component { ty, .. } => each(out, ty.results(), |out, ty| describe_type(&ty, out))?,
        }
        out.write_str(close)
    }

    /// How many bytes the values take at most that a `{` in an expression stands for without naming them: the fields of a record
    /// which need not be written because they are options. `each_bytes` is what one takes besides its name.
    pub(super) fn omitted_bytes(&self, each_bytes: usize) -> usize {
        match self {
            Self::Core(_) => 0,
            Self::Component { parameters, .. } => most(parameters.iter().cloned(), each_bytes),
        }
    }

    /// How many parameters it has.
    pub(super) fn parameters(&self) -> usize {
        match self {
            Self::Core(ty) => ty.params().len(),
            Self::Component { parameters, .. } => parameters.len(),
        }
    }
}

/// Writes items with commas between them.
fn each<Item>(
    out: &mut Bounded<'_>,
    items: impl Iterator<Item = Item>,
    write: impl Fn(&mut Bounded<'_>, Item) -> std::fmt::Result,
) -> std::fmt::Result {
    for (index, item) in items.enumerate() {
        out.write_str(if index > 0 { ", " } else { "" })?;
        write(out, item)?;
    }
    Ok(())
}

fn describe_type(ty: &Type, out: &mut Bounded<'_>) -> std::fmt::Result {
    match obstacle(ty) {
        Some(what) => write!(out, "({what})"),
        None => write!(out, "{}", DisplayType(ty)),
    }
}

/// The most bytes that the fields of one record take, of all records in these types.
fn most(types: impl Iterator<Item = Type>, each_bytes: usize) -> usize {
    let record = |ty: &Type| match ty {
        Type::Record(record) => record.fields().map(|field| each_bytes + field.name.len()).sum(),
        _ => 0,
    };
    types.map(|ty| record(&ty).max(most(inner(&ty).into_iter(), each_bytes))).max().unwrap_or(0)
}

/// What of a type has no text. The validation of a component bounds how far its types nest, and how large they are.
fn obstacle(ty: &Type) -> Option<&'static str> {
    match ty {
        Type::Own(_) | Type::Borrow(_) => Some("a resource"),
        Type::Stream(_) => Some("a stream"),
        Type::Future(_) => Some("a future"),
        Type::ErrorContext => Some("an error context"),
        Type::Map(_) => Some("a map"),
        Type::FixedLengthList(_) => Some("a list of a fixed length"),
        other => inner(other).iter().find_map(obstacle),
    }
}

/// The types that values of a type are made of.
fn inner(ty: &Type) -> Vec<Type> {
    match ty {
        Type::List(list) => vec![list.ty()],
        Type::Option(option) => vec![option.ty()],
        Type::Record(record) => record.fields().map(|field| field.ty).collect(),
        Type::Tuple(tuple) => tuple.types().collect(),
        Type::Variant(variant) => variant.cases().filter_map(|case| case.ty).collect(),
        Type::Result(result) => result.ok().into_iter().chain(result.err()).collect(),
        Type::Bool
        | Type::S8
        | Type::U8
        | Type::S16
        | Type::U16
        | Type::S32
        | Type::U32
        | Type::S64
        | Type::U64
        | Type::Float32
        | Type::Float64
        | Type::Char
        | Type::String
        | Type::Enum(_)
        | Type::Flags(_)
        | Type::Own(_)
        | Type::Borrow(_)
        | Type::Stream(_)
        | Type::Future(_)
        | Type::ErrorContext
        | Type::Map(_)
        | Type::FixedLengthList(_) => Vec::new(),
    }
}

/// Text that fails to grow beyond a bound.
struct Bounded<'a> {
    text: &'a mut String,
    left_bytes: usize,
}

impl Write for Bounded<'_> {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        self.left_bytes = self.left_bytes.checked_sub(part.len()).ok_or(std::fmt::Error)?;
        self.text.push_str(part);
        Ok(())
    }
}
