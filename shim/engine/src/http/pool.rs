//! The engine of a server with many short-lived instances: memories, tables and stacks are set up once and used again.
//! Then a new instance needs no system call that changes the address space, for which all threads would have to wait.

use std::fs::File;

use skiff_protocol::Limits;
use wasmtime::component::Component;
use wasmtime::{Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::size::{PROBE_INSTANCES, pool_instances, resident_bytes};
use crate::load::{Code, config, load};
use crate::shared::Shared;

/// The most elements of one table. Only address space is taken for them.
const TABLE_ELEMENTS_MAX: usize = 1 << 20;
/// How much of a table is cleared by writing to it. The kernel would have to tell all threads that its pages are gone.
const TABLE_KEPT_BYTES: usize = 4 << 10;
/// How many core instances one component may consist of.
const CORE_INSTANCES_MAX: u32 = 1000;

/// Opens `/proc/self/pagemap`, by which the pool of a server finds the pages that were written. Once the process is hidden, only root
/// could open it.
pub(crate) fn open_page_map() {
    // The library opens it once and keeps it.
    let _is_there = PoolingAllocationConfig::is_pagemap_scan_available();
}

/// The same component in an engine that keeps the memory of its instances for the next ones. `None` if that is not
/// possible: then each instance takes and returns its own memory.
pub(crate) fn pooled(component: &Component, code: &File, shared: &mut Shared) -> Option<Component> {
    let limit_bytes = shared.budget.limit_bytes();
    let instances = pool_instances(limit_bytes);
    let has_page_map = PoolingAllocationConfig::is_pagemap_scan_available();
    let resident_bytes = if has_page_map { resident_bytes(limit_bytes) } else { 0 };
    let engine = engine(component, instances + PROBE_INSTANCES, resident_bytes, &shared.plan.limits)?;
    match load(&engine, code) {
        Ok(Code::Component(component)) => {
            if let Some(metrics) = engine.pooling_allocator_metrics() {
                shared.budget.count_pool(metrics);
            }
            shared.pool_instances = Some(instances);
            Some(component)
        }
        Ok(Code::Module(_)) | Err(_) => None,
    }
}

/// An engine with room for `instances` instances of `component`, which leave `resident_bytes` of their memories for the next
/// ones. `None` if what they need is not known in advance, or the address space is too small for it.
fn engine(component: &Component, instances: u32, resident_bytes: u64, limits: &Limits) -> Option<Engine> {
    let needed = component.resources_required()?;
    let resident_bytes = usize::try_from(resident_bytes / u64::from(needed.num_memories.max(1))).ok()?;
    let mut pool = PoolingAllocationConfig::new();
    // Pages that a guest has written are cleared one by one, instead of being returned and faulted in again.
    pool.pagemap_scan(if resident_bytes > 0 { Enabled::Yes } else { Enabled::No })
        .linear_memory_keep_resident(resident_bytes)
        .total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_MAX))
        .total_memories(instances.saturating_mul(needed.num_memories))
        .max_memories_per_module(needed.num_memories.max(1))
        .max_memories_per_component(needed.num_memories.max(1))
        .total_tables(instances.saturating_mul(needed.num_tables))
        .max_tables_per_module(needed.num_tables.max(1))
        .max_tables_per_component(needed.num_tables.max(1))
        .table_elements(usize::try_from(needed.max_initial_table_size.unwrap_or(0)).ok()?.max(TABLE_ELEMENTS_MAX))
        .table_keep_resident(TABLE_KEPT_BYTES)
        .max_core_instance_size(1 << 24)
        .max_component_instance_size(1 << 24)
        .total_gc_heaps(instances)
        .total_stacks(instances);
    let mut config = config(limits).ok()?;
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config).ok()
}
