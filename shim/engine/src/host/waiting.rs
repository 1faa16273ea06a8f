//! The calls in which guests wait, in place of wasmtime's own: whoever looks at a guest finds it there, and it waits on. These are the waits
//! for one thing in WASI 0.1, and for whatever can be polled in 0.2.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use skiff_protocol::interfaces::{PREVIEW_1, WASI_0_2};
use wasmtime::component::{self, Resource, ResourceTable};
use wasmtime::{AsContextMut, Caller, Linker, Result, StoreContextMut};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::p1::wasi_snapshot_preview1 as p1;
use wasmtime_wasi::p2::bindings::io::poll::{Host as _, HostPollable as _};
use wasmtime_wasi::p2::bindings::io::streams::{self, HostInputStream as _};
use wasmtime_wasi::p2::{DynInputStream, DynPollable};
use wiggle::GuestMemory;

use super::filesystem::p1_directory::{SUCCESS, parts, place, write};
use crate::store::State;

type Store<'a> = StoreContextMut<'a, State>;

const STDIN: i32 = 0;
const POLL_ONEOFF: &str = "poll_oneoff";
// Of subscriptions of WASI 0.1.
const CLOCK: u8 = 0;
const MONOTONIC: u8 = 1;
const THREAD_TIME: u8 = 3;

/// Waits, in what is the guest's `call`, until an attempt succeeds or fails, and lets the guest be visited meanwhile. An attempt that is
/// dropped while it waits must have changed nothing.
async fn wait<S: AsContextMut<Data = State>, T>(
    store: &mut S,
    call: &'static str,
    attempt: impl Fn(&mut S) -> BoxFuture<'_, T>,
) -> T {
    let mut waiting = store.as_context().data().waiting(call);
    loop {
        tokio::select! {
            biased;
            done = attempt(store) => return done,
            () = waiting.called() => {}
        }
        waiting.visit(store.as_context_mut());
    }
}

/// Replaces those of WASI 0.1.
///
/// # Errors
/// Never if the linker allows shadowing.
pub(super) fn replace_p1(linker: &mut Linker<State>) -> Result<()> {
    linker.func_wrap_async(
        PREVIEW_1.module,
        POLL_ONEOFF,
        |mut caller: Caller<'_, State>, (subscriptions, events, count, returned): (i32, i32, i32, i32)| {
            Box::new(async move {
                let may_block = caller.data().tree.may_block();
                let (memory, _) = parts(&mut caller)?;
                let args = (subscriptions, events, count, returned);
                match (timer(memory, place(subscriptions), may_block), count) {
                    (Some((time, event)), 1) => {
                        sleep(&mut caller, time).await;
                        let (memory, _) = parts(&mut caller)?;
                        write(memory, place(events), event.as_flattened())?;
                        write(memory, place(returned), &1u32.to_le_bytes())?;
                        Ok(SUCCESS)
                    }
                    (None, 1) => wait(&mut caller, POLL_ONEOFF, |caller| Box::pin(poll(caller, args))).await,
                    // Some of them may be times from now on, which would begin anew.
                    _ => poll(&mut caller, args).await,
                }
            })
        },
    )?;
    linker.func_wrap_async(
        PREVIEW_1.module,
        "fd_read",
        |mut caller: Caller<'_, State>, args: (i32, i32, i32, i32)| {
            Box::new(async move {
                match args {
                    // Nothing else keeps a guest waiting for long.
                    (STDIN, ..) => wait(&mut caller, "fd_read", |caller| Box::pin(read(caller, args))).await,
                    _ => read(&mut caller, args).await,
                }
            })
        },
    )?;
    Ok(())
}

async fn poll(
    caller: &mut Caller<'_, State>,
    (subscriptions, events, count, returned): (i32, i32, i32, i32),
) -> Result<i32> {
    let (memory, state) = parts(caller)?;
    let memory = &mut GuestMemory::Unshared(memory);
    p1::poll_oneoff(&mut state.wasi, memory, subscriptions, events, count, returned).await
}

async fn read(
    caller: &mut Caller<'_, State>,
    (descriptor, vectors, count, returned): (i32, i32, i32, i32),
) -> Result<i32> {
    let (memory, state) = parts(caller)?;
    let memory = &mut GuestMemory::Unshared(memory);
    p1::fd_read(&mut state.wasi, memory, descriptor, vectors, count, returned).await
}

/// The time that a subscription waits for from now on, and its event; `None` if it is for something else, or wasmtime knows better.
/// Source: <https://github.com/WebAssembly/WASI/blob/wasi-0.1/preview1/docs.md#-subscription-record>.
fn timer(memory: &[u8], begin: usize, may_block: bool) -> Option<(Duration, [[u8; 8]; 4])> {
    let (words, _) = memory.get(begin..)?.as_chunks::<8>();
    let [userdata, [CLOCK, ..], [clock, 0, 0, 0, ..], time, _, [0, 0, ..], ..] = words else {
        return None;
    };
    // Like wasmtime: where it sleeps in the kernel, it sleeps by any clock, and elsewhere it knows only two.
    let last_clock = if may_block { THREAD_TIME } else { MONOTONIC };
    let time = Duration::from_nanos(u64::from_le_bytes(*time));
    (*clock <= last_clock && !time.is_zero()).then_some((time, [*userdata, [0; 8], [0; 8], [0; 8]]))
}

/// Sleeps, in what is the guest's `poll_oneoff`.
async fn sleep(caller: &mut Caller<'_, State>, time: Duration) {
    let end = Instant::now() + time;
    if !caller.data().tree.may_block() {
        return wait(caller, POLL_ONEOFF, |_| Box::pin(tokio::time::sleep_until(end.into()))).await;
    }
    // Like wasmtime: the kernel's sleep is finer than tokio's.
    let mut waiting = caller.data().waiting(POLL_ONEOFF);
    while waiting.sleep(end.saturating_duration_since(Instant::now())) {
        waiting.visit(caller.as_context_mut());
    }
}

/// Replaces those of `wasi:io/poll`.
///
/// # Errors
/// Never if they are defined.
pub(super) fn replace_poll(linker: &mut component::Linker<State>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut functions = linker.instance(&format!("wasi:io/poll@{}", WASI_0_2.release))?;
    functions.func_wrap_async("poll", |mut store: Store<'_>, (pollables,): (Vec<Resource<DynPollable>>,)| {
        let pollables: Vec<u32> = pollables.iter().map(Resource::rep).collect();
        Box::new(async move {
            let ready = wait(&mut store, "wasi:io/poll#poll", |store| {
                let borrowed = pollables.iter().map(|pollable| Resource::new_borrow(*pollable)).collect();
                Box::pin(table(store.data_mut()).poll(borrowed))
            });
            Ok((ready.await?,))
        })
    })?;
    functions.func_wrap_async(
        "[method]pollable.block",
        |mut store: Store<'_>, (pollable,): (Resource<DynPollable>,)| {
            Box::new(async move {
                wait(&mut store, "wasi:io/poll#[method]pollable.block", |store| {
                    Box::pin(table(store.data_mut()).block(Resource::new_borrow(pollable.rep())))
                })
                .await
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Replaces those of `wasi:io/streams` that read.
///
/// # Errors
/// Never if they are defined.
pub(super) fn replace_streams(linker: &mut component::Linker<State>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut functions = linker.instance(&format!("wasi:io/streams@{}", WASI_0_2.release))?;
    functions.func_wrap_async(
        "[method]input-stream.blocking-read",
        |mut store: Store<'_>, (input, length): (Resource<DynInputStream>, u64)| {
            Box::new(async move {
                let read = wait(&mut store, "wasi:io/streams#[method]input-stream.blocking-read", |store| {
                    Box::pin(table(store.data_mut()).blocking_read(Resource::new_borrow(input.rep()), length))
                });
                Ok((match read.await {
                    Ok(bytes) => Ok(bytes),
                    Err(error) => Err(streams::Host::convert_stream_error(table(store.data_mut()), error)?),
                },))
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Where the resources of 0.2 are.
pub(super) fn table(state: &mut State) -> &mut ResourceTable {
    state.ctx().table
}
