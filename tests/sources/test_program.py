"""Programs of database servers: what they write is believed only when they ended well."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conformance.source import open_files
from holdfast.errors import DatabaseError
from holdfast.sources._program import PIECE_BYTES, Program, find_program

DOING = "Database backup failed"


def program(code: str, **options: object) -> Program:
    return Program([sys.executable, "-c", code], DOING, **options)  # type: ignore[arg-type]


def test_output_comes_in_pieces() -> None:
    size = 3 * PIECE_BYTES + 5
    code = f"import sys; sys.stdout.buffer.write(bytes(range(256)) * ({size} // 256 + 1))"
    pieces = [bytes(piece) for piece in program(code).output()]
    assert [len(piece) for piece in pieces[:3]] == [PIECE_BYTES] * 3
    assert b"".join(pieces)[:size] == (bytes(range(256)) * (size // 256 + 1))[:size]


def test_a_failure_after_the_last_piece_is_an_error() -> None:
    stream = program("import sys; print('half'); sys.stderr.write('no more\\n'); sys.exit(3)").output()
    assert bytes(next(stream)) == b"half\n"
    with pytest.raises(DatabaseError, match=r"^Database backup failed: python.* ended with code 3: no more$"):
        next(stream)


def test_a_killed_program_is_an_error() -> None:
    with pytest.raises(DatabaseError, match=f"was killed by signal {signal.SIGKILL.value}"):
        program("import os; os.kill(os.getpid(), 9)").run()


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DatabaseError, match=r"^Database backup failed: none cannot be run: No such file"):
        Program(["/nowhere/none"], DOING).run()


def test_closing_the_output_stops_the_program() -> None:
    before = open_files()
    code = "import os, sys\nprint(os.getpid(), flush=True)\nwhile True: sys.stdout.write('x' * 100000)"
    stream = program(code).output()
    with closing(stream):
        pid = int(bytes(next(stream)[:20]).split()[0])
    assert open_files() == before
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_much_complaint_is_cut_and_cannot_speak_to_a_terminal() -> None:
    code = r"import sys; sys.stderr.write('x\n' * 1000000 + '\x1b[31mred\n'); sys.exit(1)"
    with pytest.raises(DatabaseError) as caught:
        program(code).run()
    assert str(caught.value).endswith(r"x; x; x; x; \x1b[31mred")


def test_secrets_are_never_told() -> None:
    code = "import os, sys; sys.stderr.write(os.environ['PW'] + ' is wrong'); sys.exit(1)"
    failing = program(code, environ={"PW": "hush hush"}, secrets=["hush hush", ""])
    with pytest.raises(DatabaseError, match="… is wrong"):
        failing.run()
    assert "hush" not in repr(failing)


def test_input_is_fed_and_its_end_waited_for(tmp_path: Path) -> None:
    target = tmp_path / "fed"
    code = f"import sys; open({str(target)!r}, 'wb').write(sys.stdin.buffer.read())"
    program(code).feed([b"one", memoryview(b"two" * PIECE_BYTES), b""])
    assert target.read_bytes() == b"one" + b"two" * PIECE_BYTES


def test_a_program_that_does_not_take_its_input_is_an_error() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * PIECE_BYTES

    with pytest.raises(DatabaseError, match="ended before its input"):
        program("pass").feed(endless())
    with pytest.raises(DatabaseError, match="ended with code 7: because"):
        program("import sys; sys.stderr.write('because'); sys.exit(7)").feed(endless())


def test_a_source_that_fails_stops_what_it_fed(tmp_path: Path) -> None:
    done = tmp_path / "done"

    def failing() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("no more")

    before = open_files()
    with pytest.raises(ValueError, match="no more"):
        program(
            "import sys, signal, time; signal.signal(signal.SIGTERM, signal.SIG_DFL); sys.stdin.read(); "
            f"time.sleep(60); open({str(done)!r}, 'w')"
        ).feed(failing())
    assert open_files() == before
    assert not done.exists()


@pytest.mark.skipif(shutil.which("locale") is None, reason="needs the program locale")
def test_messages_are_not_translated_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("LC_CTYPE", "POSIX")
    monkeypatch.setenv("LANGUAGE", "de")
    said = Program(["locale"], DOING).run().replace('"', "").splitlines()
    assert "LC_MESSAGES=C" in said
    assert "LC_CTYPE=C.UTF-8" in said
    assert "LC_ALL=" in said
    assert "LANGUAGE=" in said or not [line for line in said if line.startswith("LANGUAGE")]


def test_open_files_are_inherited_only_where_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("inherited")
    with (tmp_path / "file").open() as file:
        os.set_inheritable(file.fileno(), True)
        code = f"import os; print(os.read({file.fileno()}, 100).decode())"
        assert program(code, descriptors=[file.fileno()]).run() == "inherited\n"
        file.seek(0)
        with pytest.raises(DatabaseError, match="Bad file descriptor"):
            program(code).run()


def test_the_first_that_is_installed_is_found() -> None:
    assert find_program("no-such-program", "sh", package="x") == shutil.which("sh")
    with pytest.raises(DatabaseError, match="no-such-program is needed") as caught:
        find_program("no-such-program", package="postgresql-client")
    assert "Install postgresql-client" in caught.value.hint
