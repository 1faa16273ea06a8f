//! What the results of a component take of the host's memory. wasmtime bounds them by fuel, which counts a value and the letters of names,
//! but not the room in which they are kept: a flag with a name of one letter costs 1, and takes 80 bytes.

use wasmtime::component::{Type, Val};

/// What results may take beyond what their fuel pays for, in bytes. It is part of the host's share.
const FREE_BYTES: i64 = 64 << 10;
/// A value, and a name: both where they are kept in a row.
const VALUE_BYTES: i64 = 40;
const NAME_BYTES: i64 = 24;
const _: () = assert!(size_of::<Val>() == 40 && size_of::<String>() == 24);
/// How often an item of a list is there at most while the list grows: in its place, and in what the list grows out of.
const GROWING: i64 = 2;
/// The fewest places in a row that is not empty.
const PLACES_MIN: i64 = 4;
/// What the C library takes besides the bytes that are asked for, and the least of both.
const HEAD_BYTES: i64 = 16;
const BLOCK_BYTES_MIN: i64 = 32;
/// Letters in Latin-1 take up to two bytes for one in UTF-8, and those in UTF-16 up to three for two.
const TEXT_RATIO: i64 = 2;

/// How many bytes values of a type take at most for each unit of fuel, as a power of two.
pub(super) fn bytes_per_fuel(ty: &Type) -> u64 {
    let is_enough = |ratio: &i64| excess(ty, *ratio).is_some_and(|bytes| bytes <= FREE_BYTES);
    // With the last one a name of one letter pays for itself.
    [1, 2, 4, 8, 16, 32, 64].into_iter().find(is_enough).unwrap_or(128).unsigned_abs()
}

/// How many bytes a value takes at most beyond `ratio` for each unit of its fuel, and beyond its own place. `None` if there is no
/// bound to it.
fn excess(ty: &Type, ratio: i64) -> Option<i64> {
    match ty {
        Type::String => (ratio >= TEXT_RATIO).then_some(BLOCK_BYTES_MIN),
        Type::List(list) => {
            let item = excess(&list.ty(), ratio)? - VALUE_BYTES * ratio;
            let is_bounded = GROWING * VALUE_BYTES + item <= 0;
            is_bounded.then_some(HEAD_BYTES.max(PLACES_MIN * VALUE_BYTES + HEAD_BYTES + item))
        }
        Type::Record(record) => {
            let fields = record.fields().map(|field| Some(name(field.name, ratio) + excess(&field.ty, ratio)?));
            Some(row(record.fields().len(), NAME_BYTES, ratio) + fields.sum::<Option<i64>>()?)
        }
        Type::Tuple(tuple) => {
            let values = tuple.types().map(|ty| excess(&ty, ratio)).sum::<Option<i64>>()?;
            Some(row(tuple.types().len(), 0, ratio) + values)
        }
        Type::Variant(variant) => {
            most(variant.cases().map(|case| Some(name(case.name, ratio) + payload(case.ty, ratio)?)))
        }
        Type::Option(option) => payload(Some(option.ty()), ratio).map(|bytes| bytes.max(0)),
        Type::Result(result) => most([result.ok(), result.err()].into_iter().map(|ty| payload(ty, ratio))),
        Type::Enum(names) => most(names.names().map(|one| Some(name(one, ratio)))),
        Type::Flags(flags) => {
            let each = flags.names().map(|one| (2 * NAME_BYTES + name(one, ratio)).max(0));
            Some(PLACES_MIN * NAME_BYTES + HEAD_BYTES + each.sum::<i64>())
        }
        // The others are nowhere but in their own place, or not in results of functions that can be called.
        _ => Some(0),
    }
}

/// The fields of a record or tuple, each with `beside_bytes` besides its value.
fn row(count: usize, beside_bytes: i64, ratio: i64) -> i64 {
    let (count, places) = (bytes_of(count), bytes_of(count.next_power_of_two()).max(PLACES_MIN));
    places * (VALUE_BYTES + beside_bytes) + HEAD_BYTES - count * VALUE_BYTES * ratio
}

/// A value in a place of its own.
fn payload(ty: Option<Type>, ratio: i64) -> Option<i64> {
    ty.map_or(Some(0), |ty| Some(VALUE_BYTES + HEAD_BYTES - VALUE_BYTES * ratio + excess(&ty, ratio)?))
}

/// The bytes of a name.
fn name(name: &str, ratio: i64) -> i64 {
    let length = bytes_of(name.len());
    (length + HEAD_BYTES).max(BLOCK_BYTES_MIN) - length * ratio
}

fn most(mut all: impl Iterator<Item = Option<i64>>) -> Option<i64> {
    all.try_fold(i64::MIN, |most, one| Some(most.max(one?)))
}

fn bytes_of(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
