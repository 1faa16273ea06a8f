// A command in JavaScript: a greeting, or `throw`, `reject` (a promise that nobody awaits fails), `fail` (its result is an error).
import { getArguments } from "wasi:cli/environment@0.2.10";

export const run = {
  run() {
    switch (getArguments()[1]) {
      case undefined:
        return console.log("hello from JavaScript");
      case "throw":
        return innermost();
      case "reject":
        Promise.reject(new TypeError("on purpose, later"));
        return;
      case "fail":
        throw undefined;
      default:
        return console.log("unknown");
    }
  },
};

function innermost() {
  throw new RangeError("on purpose");
}
