//! A component whose functions take and return values of every kind: the world `values` of `test/guests/wit`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use exports::guests::values::shop;

wit_bindgen::generate!({ world: "values", path: "../../wit" });
export!(Values);

struct Values;

static COUNT: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static ITEMS: RefCell<BTreeMap<String, shop::Item>> = const { RefCell::new(BTreeMap::new()) };
}

impl Guest for Values {
    fn add(left: i32, right: i32) -> i32 {
        left.wrapping_add(right)
    }

    fn counter() -> u32 {
        COUNT.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn divide(left: i32, right: i32) -> Result<i32, String> {
        left.checked_div(right).ok_or_else(|| format!("cannot divide {left} by {right}"))
    }

    fn initial(text: String) -> Option<char> {
        text.chars().next()
    }

    fn fail() {
        panic!("on purpose");
    }
}

impl shop::Guest for Values {
    fn put(item: shop::Item) -> Result<u32, String> {
        if item.name.is_empty() {
            return Err("an item needs a name".into());
        }
        ITEMS.with_borrow_mut(|items| {
            items.insert(item.name.clone(), item);
            Ok(items.len() as u32)
        })
    }

    fn get(name: String) -> Option<shop::Item> {
        ITEMS.with_borrow(|items| items.get(&name).cloned())
    }

    fn names() -> Vec<String> {
        ITEMS.with_borrow(|items| items.keys().cloned().collect())
    }

    fn remove(name: String) -> Result<(), ()> {
        ITEMS.with_borrow_mut(|items| items.remove(&name)).map(drop).ok_or(())
    }
}
