// A component whose functions take and return values of every kind: the world `values` of `test/guests/wit`.

let count = 0;
const items = new Map();

export const add = (left, right) => (left + right) | 0;

export const counter = () => ++count;

export function divide(left, right) {
  if (right === 0) throw `cannot divide ${left} by ${right}`;
  return Math.trunc(left / right);
}

export const initial = (text) => [...text][0];

export function fail() {
  throw new Error("on purpose");
}

export const shop = {
  put(item) {
    if (item.name === "") throw "an item needs a name";
    items.set(item.name, item);
    return items.size;
  },
  get: (name) => items.get(name),
  names: () => [...items.keys()].sort(),
  remove(name) {
    if (!items.delete(name)) throw undefined;
  },
};
