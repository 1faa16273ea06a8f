"""A component whose functions take and return values of every kind: the world `values` of `test/guests/wit`."""

import wit_world
from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.shop import Item

ITEMS: dict[str, Item] = {}


class WitWorld(wit_world.WitWorld):
    """The functions that the world itself exports."""

    calls = 0

    def add(self, left: int, right: int) -> int:
        return (left + right + 2**31) % 2**32 - 2**31

    def counter(self) -> int:
        WitWorld.calls += 1
        return WitWorld.calls

    def divide(self, left: int, right: int) -> int:
        if right == 0:
            raise Err(f"cannot divide {left} by {right}")
        return int(left / right)

    def initial(self, text: str) -> str | None:
        return text[:1] or None

    def fail(self) -> None:
        raise ValueError("on purpose")


class Shop(exports.Shop):
    """The interface `shop`."""

    def put(self, item: Item) -> int:
        if not item.name:
            raise Err("an item needs a name")
        ITEMS[item.name] = item
        return len(ITEMS)

    def get(self, name: str) -> Item | None:
        return ITEMS.get(name)

    def names(self) -> list[str]:
        return sorted(ITEMS)

    def remove(self, name: str) -> None:
        if ITEMS.pop(name, None) is None:
            raise Err(None)
