"""A command in CPython: a greeting, or `env`, `list PATH`, `echo` (standard input), `exit N`, `raise`."""

import os
import sys

from wit_world import exports


class Run(exports.Run):
    """The export `wasi:cli/run`."""

    def run(self) -> None:
        verb, words = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
        print(answer(verb, words), flush=True)


def answer(verb: str, words: list[str]) -> str:
    """What the verb prints."""
    match verb:
        case "":
            return f"hello from Python {sys.version_info.major}.{sys.version_info.minor}"
        case "env":
            return "\n".join(f"{name}={value}" for name, value in sorted(os.environ.items()))
        case "list":
            return " ".join(sorted(os.listdir(words[0])))
        case "exit":
            sys.exit(int(words[0]))
        case "raise":
            raise ValueError("on purpose")
        case "echo":
            return sys.stdin.read()
        case _:
            return f"unknown: {verb}"
