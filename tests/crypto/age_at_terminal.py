"""Runs a program on a terminal of its own and types the passphrase, read from stdin, at each of its prompts.

A process of its own, because forking the one that runs the tests, which may have threads, is not safe.
"""

from __future__ import annotations

import os
import pty
import sys


def main() -> int:
    answer = sys.stdin.buffer.readline()

    def type_at_prompts(terminal: int) -> bytes:
        said = os.read(terminal, 4096)
        if said.endswith(b": "):
            os.write(terminal, answer)
        return said

    return os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:], type_at_prompts))


if __name__ == "__main__":
    sys.exit(main())
