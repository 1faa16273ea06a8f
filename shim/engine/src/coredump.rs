//! The wasm core dump format of a core module, which goes on or has trapped: its exported memories and globals, and its stack
//! (<https://github.com/WebAssembly/tool-conventions/blob/main/Coredump.md>). wasmtime makes dumps at traps only, and whole ones in memory;
//! this one is written in two passes, so that it needs no memory whatever the guest has.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use tokio::sync::oneshot::{self, Receiver};
use tokio::time::timeout;
use wasmtime::{AsContextMut, Error, Extern, Global, Memory, StoreContextMut, Val, WasmBacktrace};

use crate::files::new_file::NewFile;
use crate::shared::Shared;
use crate::shown::{shown, why};
use crate::store::State;

/// What is searched for the data that is not zero, in bytes. With it 4 GiB have fewer segments than a module may have.
const PART_BYTES: usize = 64 << 10;
/// How long the dump of a trap may take.
pub(crate) const TIME: Duration = Duration::from_secs(30);
/// How much longer it is waited for: after that its volume hangs.
const HANGING: Duration = Duration::from_secs(1);
/// How long the end of the process waits for a dump that nobody waits for.
const LEAVING: Duration = Duration::from_secs(5);
const STACK_BYTES: usize = 256 << 10;

const CUSTOM: u8 = 0;
const MEMORY: u8 = 5;
const GLOBAL: u8 = 6;
const DATA: u8 = 11;

/// The dump of a trap, which a thread of its own writes: the volume may hang.
pub(crate) struct Dump {
    /// What has come of it, in a sentence. Dropped, it is said in the log.
    told: Receiver<String>,
    /// The sentence if nothing comes of it.
    otherwise: String,
}

impl Dump {
    /// Begins to write a dump of a core module that has trapped into the file that its plan names, if it names one, as soon as nobody
    /// else writes one, which it waits for `patience`. A file that is there stays as it is: the first trap is kept.
    pub(crate) fn begin<S>(mut store: S, trap: Error, shared: &Arc<Shared>, patience: Duration) -> Option<Self>
    where
        S: AsContextMut<Data = State> + Send + 'static,
    {
        // Nothing of a component is in reach, nor of a module whose own start function trapped.
        store.as_context().data().instance.filter(|_| shared.plan.core_dump.is_some())?;
        let backtrace = trap.downcast().ok()?;
        let (telling, told) = oneshot::channel();
        let (theirs, end) = (Arc::clone(shared), Instant::now() + TIME);
        let thread = Builder::new().name("core-dump".to_owned()).stack_size(STACK_BYTES);
        let begun = thread.spawn(move || {
            let turn = theirs.glass.keeping.take(patience);
            let written = match turn {
                Some(_) => keep(store.as_context_mut(), &backtrace, &theirs, end),
                None => Err(io::Error::other("another one is under way")),
            };
            // The next instance may need the memory.
            drop(store);
            if let Err(sentence) = telling.send(sentence(written, &theirs)) {
                theirs.reporter.line(&sentence);
            }
            drop(turn);
        });
        let otherwise = sentence(Err(begun.err().unwrap_or_else(too_late)), shared);
        Some(Self { told, otherwise })
    }

    /// What has come of it, once it is over or has taken as long as it may.
    pub(crate) async fn told(self) -> String {
        match timeout(TIME + HANGING, self.told).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) | Err(_) => self.otherwise,
        }
    }
}

/// Waits a little for a dump that is under way: the process is about to end.
pub(crate) fn finish(shared: &Shared) {
    drop(shared.glass.keeping.wait(LEAVING));
}

/// Writes a dump into the file of the plan, which is kept if it is whole by `end`.
fn keep(store: StoreContextMut<'_, State>, backtrace: &WasmBacktrace, shared: &Shared, end: Instant) -> io::Result<()> {
    let file = NewFile::create(Path::new(path(shared)), shared.reader())?;
    let mut output = BufWriter::with_capacity(PART_BYTES, Until { end, output: file });
    write(store, &shared.plan.module, backtrace, &mut output)?;
    output.flush()
}

/// What has come of a dump.
fn sentence(written: io::Result<()>, shared: &Shared) -> String {
    let path = shown(path(shared).as_bytes());
    match written {
        Ok(()) => format!("the core dump is in `{path}`"),
        Err(error) => format!("cannot write the core dump to `{path}`: {}", why(&error)),
    }
}

fn path(shared: &Shared) -> &str {
    shared.plan.core_dump.as_deref().unwrap_or_default()
}

fn too_late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("it takes longer than {} s", TIME.as_secs()))
}

/// An output that takes nothing any more after `end`.
struct Until<W> {
    end: Instant,
    output: W,
}

impl<W: Write> Write for Until<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if Instant::now() > self.end { Err(too_late()) } else { self.output.write(bytes) }
    }

    fn flush(&mut self) -> io::Result<()> {
        if Instant::now() > self.end { Err(too_late()) } else { self.output.flush() }
    }
}

/// Writes a dump of the guest of `store`, which is named `name` and has this stack.
///
/// # Errors
/// Those of writing.
pub(crate) fn write(
    mut store: StoreContextMut<'_, State>,
    name: &str,
    backtrace: &WasmBacktrace,
    output: &mut impl Write,
) -> io::Result<()> {
    let (memories, globals) = exports(&mut store);
    output.write_all(b"\0asm\x01\0\0\0")?;
    custom(output, "core", |body| {
        body.push(0);
        text(body, name);
    })?;
    let types = memories.iter().map(|memory| memory_type(&store, memory));
    section(output, MEMORY, &vector(types))?;
    let values = globals.iter().filter_map(|global| global_value(&mut store, global));
    section(output, GLOBAL, &vector(values))?;
    data(&store, &memories, output)?;
    custom(output, "coremodules", |body| {
        body.extend([1, 0]);
        text(body, name);
    })?;
    custom(output, "coreinstances", |body| {
        body.extend([1, 0, 0]);
        for count in [memories.len(), globals.len()] {
            unsigned(body, count as u64);
            (0..count).for_each(|index| unsigned(body, index as u64));
        }
    })?;
    custom(output, "corestack", |body| stack(body, backtrace))
}

/// The memories and the globals of numbers that the guest exports. Others are out of the host's reach.
fn exports(store: &mut StoreContextMut<'_, State>) -> (Vec<Memory>, Vec<Global>) {
    let Some(instance) = store.data().instance else { return (Vec::new(), Vec::new()) };
    let all: Vec<Extern> = instance.exports(&mut *store).map(wasmtime::Export::into_extern).collect();
    let memories = all.iter().filter_map(|one| one.clone().into_memory()).collect();
    let is_number = |global: &Global| global.ty(&*store).content().is_num();
    (memories, all.into_iter().filter_map(Extern::into_global).filter(is_number).collect())
}

fn memory_type(store: &StoreContextMut<'_, State>, memory: &Memory) -> Vec<u8> {
    let kind = memory.ty(store);
    let mut body = vec![u8::from(kind.maximum().is_some()) | if kind.is_64() { 4 } else { 0 }];
    unsigned(&mut body, memory.size(store));
    if let Some(maximum) = kind.maximum() {
        unsigned(&mut body, maximum);
    }
    body
}

fn global_value(store: &mut StoreContextMut<'_, State>, global: &Global) -> Option<Vec<u8>> {
    let is_variable = u8::from(global.ty(&*store).mutability().is_var());
    let mut body = Vec::new();
    match global.get(&mut *store) {
        Val::I32(value) => {
            body.extend([0x7f, is_variable, 0x41]);
            signed(&mut body, value.into());
        }
        Val::I64(value) => {
            body.extend([0x7e, is_variable, 0x42]);
            signed(&mut body, value);
        }
        Val::F32(bits) => {
            body.extend([0x7d, is_variable, 0x43]);
            body.extend(bits.to_le_bytes());
        }
        Val::F64(bits) => {
            body.extend([0x7c, is_variable, 0x44]);
            body.extend(bits.to_le_bytes());
        }
        _ => return None,
    }
    body.push(0x0b);
    Some(body)
}

/// Writes what is in the memories, without most of the zeros: its length first, then the same once more.
fn data(store: &StoreContextMut<'_, State>, memories: &[Memory], output: &mut impl Write) -> io::Result<()> {
    let (mut count, mut length) = (0, 0);
    segments(store, memories, |head, bytes| {
        count += 1;
        length += (head.len() + bytes.len()) as u64;
        Ok(())
    })?;
    let mut head = Vec::new();
    unsigned(&mut head, count);
    let mut section = vec![DATA];
    unsigned(&mut section, length + head.len() as u64);
    section.extend(head);
    output.write_all(&section)?;
    segments(store, memories, |head, bytes| {
        output.write_all(head)?;
        output.write_all(bytes)
    })
}

/// Calls `write` with the head and the bytes of each segment.
fn segments(
    store: &StoreContextMut<'_, State>,
    memories: &[Memory],
    mut write: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut head = Vec::new();
    for (index, memory) in memories.iter().enumerate() {
        let constant = if memory.ty(store).is_64() { 0x42 } else { 0x41 };
        for (number, part) in memory.data(store).chunks(PART_BYTES).enumerate() {
            let Some(first) = part.iter().position(|byte| *byte != 0) else { continue };
            let last = part.iter().rposition(|byte| *byte != 0).unwrap_or(first);
            let bytes = part.get(first..=last).unwrap_or_default();
            let offset = (number * PART_BYTES + first) as u64;
            head.clear();
            head.push(2);
            unsigned(&mut head, index as u64);
            head.push(constant);
            // An offset of 32 bits is a signed constant.
            let offset = if constant == 0x41 {
                u32::try_from(offset).map_or(0, |o| o.cast_signed().into())
            } else {
                offset.cast_signed()
            };
            signed(&mut head, offset);
            head.push(0x0b);
            unsigned(&mut head, bytes.len() as u64);
            write(&head, bytes)?;
        }
    }
    Ok(())
}

/// The only thread, and its frames without values: the compiler keeps none.
fn stack(body: &mut Vec<u8>, backtrace: &WasmBacktrace) {
    body.push(0);
    text(body, "main");
    unsigned(body, backtrace.frames().len() as u64);
    for frame in backtrace.frames() {
        body.extend([0, 0]);
        unsigned(body, frame.func_index().into());
        unsigned(body, frame.func_offset().unwrap_or_default() as u64);
        body.extend([0, 0]);
    }
}

fn custom(output: &mut impl Write, name: &str, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
    let mut body = Vec::new();
    text(&mut body, name);
    fill(&mut body);
    section(output, CUSTOM, &body)
}

fn section(output: &mut impl Write, id: u8, body: &[u8]) -> io::Result<()> {
    let mut head = vec![id];
    unsigned(&mut head, body.len() as u64);
    output.write_all(&head)?;
    output.write_all(body)
}

fn vector(items: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let items: Vec<Vec<u8>> = items.collect();
    let mut body = Vec::new();
    unsigned(&mut body, items.len() as u64);
    body.extend(items.concat());
    body
}

fn text(body: &mut Vec<u8>, text: &str) {
    unsigned(body, text.len() as u64);
    body.extend(text.as_bytes());
}

/// A number in LEB128.
fn unsigned(body: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            body.push(low & 0x7f);
            return;
        }
        body.push(low | 0x80);
    }
}

/// A signed number in LEB128.
fn signed(body: &mut Vec<u8>, mut value: i64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        let sign = low & 0x40 != 0;
        if (value == 0 && !sign) || (value == -1 && sign) {
            body.push(low & 0x7f);
            return;
        }
        body.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_leb128() {
        for (value, expected) in [(0, &[0][..]), (127, &[0x7f]), (128, &[0x80, 1]), (624_485, &[0xe5, 0x8e, 0x26])] {
            let mut body = Vec::new();
            unsigned(&mut body, value);
            assert_eq!(body, expected);
        }
        for (value, expected) in
            [(0, &[0][..]), (-1, &[0x7f]), (63, &[0x3f]), (64, &[0xc0, 0]), (-123_456, &[0xc0, 0xbb, 0x78])]
        {
            let mut body = Vec::new();
            signed(&mut body, value);
            assert_eq!(body, expected);
        }
    }
}
