"""The demonstration: a small real service is backed up while it works, destroyed, and brought back.

Everything is real: the model is trained, the predictions are made by it, and Holdfast is driven through its own
command line, so what is printed after a ``$`` can be typed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from holdfast.cli._demo_database import DemoDatabase, Tables, demo_database
from holdfast.cli._terminal import human_size, human_time, print_table
from holdfast.errors import HoldfastError, UsageError

_SETTINGS = "config/service.yaml"
_DESTROYED = ("models", "config")
_PATIENCE = 10.0
"""Seconds that a program which was asked to stop is waited for."""

_MISLEADING = ("BACKUP_", "HOLDFAST_", "DATABASE_URL", "ENCRYPTION_KEY", "LOG_LEVEL")
"""Beginnings of variables that mean the person's own service, not this one."""

_PREDICT = """
import json
from app.core.config import load_config
from app.ml.registry import load_newest
from app.ml.task import draw
config = load_config()
classifier = load_newest(config.model_directory)
readings, _ = draw(1000, seed=11)
told = [
    (classifier.card.classes[row.argmax()], float(row.max()), bool(row.max() < config.review_threshold))
    for row in classifier.network.probabilities(readings)
]
print(json.dumps({"version": classifier.card.version, "answers": told}))
"""


class _State(NamedTuple):
    """What the service knows and answers, at one moment."""

    model_version: int
    answers: list[Any]
    """To the same thousand readings each time: label, confidence, whether a human should look."""
    tables: Tables

    @property
    def rows(self) -> int:
        return sum(count for count, _ in self.tables.values())

    def differences(self, other: _State) -> Iterator[str]:
        """What `other` has otherwise, in words."""
        if self.model_version != other.model_version:
            yield f"model version {self.model_version} became {other.model_version}"
        changed = sum(one != two for one, two in zip(self.answers, other.answers, strict=True))
        if changed:
            yield f"{changed} of {len(self.answers)} predictions differ"
        for table in sorted({*self.tables, *other.tables}):
            if self.tables.get(table) != other.tables.get(table):
                before, after = (state.tables.get(table, (0, ""))[0] for state in (self, other))
                yield f"table {table}: {before:,} rows before, {after:,} now, not the same ones"


class _Failed(HoldfastError):
    """The demonstration did not show what it set out to show."""

    default_hint = "With --keep its directory stays, for a look."


@dataclass
class _Step:
    """One row of the summary."""

    name: str
    result: str = ""
    seconds: float = 0.0


def run(service: Path, *, database: str, keep: bool) -> None:
    """Runs the demonstration with the example service whose sources are in `service`; about half a minute.

    `database`: see `demo_database`.

    It works in a temporary directory, which it removes, unless `keep`. Raises UsageError when there is no such
    service, and HoldfastError when anything is not as it was before the disaster.
    """
    if not (service / "scripts" / "seed_service.py").is_file():
        raise UsageError(
            f"there is no example service in {service}",
            hint="It lies in Holdfast's sources: run `make demo` there, or name its directory with --service.",
        )
    with _directory(keep=keep) as directory:
        home = directory / "service"
        home.mkdir()
        with demo_database(database, home) as used:
            _Demo(service.resolve(), directory, home, used).tell()


@contextmanager
def _directory(*, keep: bool) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="holdfast-demo-")).resolve()
    try:
        yield directory
    finally:
        if keep:
            print(f"\nEverything is still in {directory}", flush=True)
        else:
            shutil.rmtree(directory)


@dataclass
class _Demo:
    sources: Path
    directory: Path
    home: Path
    database: DemoDatabase
    steps: list[_Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_MISLEADING)}
        paths = [str(self.sources), *filter(None, [os.environ.get("PYTHONPATH")])]
        # A second thread gains nothing in a training this small, and fights the traffic for the processor.
        self.environment = (
            {"OPENBLAS_NUM_THREADS": "1"}
            | inherited
            | {
                "XDG_STATE_HOME": str(self.directory / "state"),
                "PYTHONPATH": os.pathsep.join(paths),
            }
            | self.database.environment
        )

    def tell(self) -> None:
        self._prepare()
        full_rows = self._back_up_at_work()
        before = self._work_on()
        self._secure()
        self._destroy()
        self._bring_back(before)
        self._undo_and_redo(before)
        self._open_without_holdfast(full_rows)
        print("\n# Summary\n")
        print_table(
            ("STEP", "RESULT", "TIME"),
            [(step.name, step.result, human_time(step.seconds)) for step in self.steps],
            right=("TIME",),
        )

    def _prepare(self) -> None:
        with self._step("A service: a database, a trained model, settings", "prepare the service") as step:
            self._service("scripts/seed_service.py")
            state = self._state()
            step.result = f"model v{state.model_version}, {state.rows:,} rows"
        with self._step("Set up backups, with a key", "holdfast init") as step:
            self._holdfast("init")
            step.result = "settings and key written"

    def _back_up_at_work(self) -> range:
        """Returns how many predictions there may be in the backup: from those there were when it began to those
        there were when it had ended."""
        with self._step("A full backup, while the service works", "backup under load") as step:
            with self._traffic():
                first = self.database.predictions()
                self._holdfast("backup")
                last = self.database.predictions()
            size = self._newest()["size_bytes"]
            step.result = f"{human_size(size)}; {last - first} predictions written meanwhile"
        return range(first, last + 1)

    def _work_on(self) -> _State:
        with self._step("The service works on: rows, a new model, a setting", "a day of work") as step:
            with self._traffic():
                self._service("-m", "app.ml.train", "--seed", "2")
            settings = self.home / _SETTINGS
            settings.write_text(
                settings.read_text().replace("review_threshold: 0.6", "review_threshold: 0.7")
            )
            print(f"{_SETTINGS}: review_threshold is 0.7 now")
            state = self._state()
            step.result = f"model v{state.model_version}, {state.rows:,} rows"
        return state

    def _secure(self) -> None:
        with self._step("An incremental backup: only what has changed", "incremental backup") as step:
            self._holdfast("backup", "--incremental")
            step.result = human_size(self._newest()["size_bytes"])
        with self._step("Prove that both can be restored", "verify --deep") as step:
            self._holdfast("verify", "--all", "--deep")
            step.result = "both good"

    def _destroy(self) -> None:
        with self._step("The disaster: database, models and settings are destroyed", "the disaster") as step:
            print(f"$ rm -rf {' '.join(_DESTROYED)}; {self.database.destroying}", flush=True)
            for name in _DESTROYED:
                shutil.rmtree(self.home / name)
            self.database.destroy()
            step.result = "database, models/ and config/ are gone"

    def _bring_back(self, before: _State) -> None:
        with self._step("Restore, and ask the service what it asked before", "restore") as step:
            self._holdfast("restore", "latest", "--confirm", "--create-db")
            step.result = self._compare(before)
            print(f"As before the disaster: {step.result}")

    def _undo_and_redo(self, before: _State) -> None:
        with self._step("A restore can be taken back, and that too", "undo, and redo") as step:
            self._holdfast("undo", "--confirm")
            there = [name for name in _DESTROYED if (self.home / name).exists()]
            if there := there + [self.database.name] * self.database.is_there():
                raise _Failed(f"undo left {', '.join(there)}, which had not been there before the restore")
            print(f"Gone again, as after the disaster: {self.database.name}, models/, config/")
            self._holdfast("undo", "--confirm")
            self._compare(before)
            step.result = "gone again; back again, the same"

    def _open_without_holdfast(self, rows: range) -> None:
        with self._step("The archive opens without Holdfast", "age -d | tar xz") as step:
            programs = [shutil.which(name) for name in ("age", "tar")]
            if None in programs:
                step.result = "not shown: it needs the programs age and tar"
                print(step.result)
                return
            full = next(known for known in self._backups() if known["type"] == "full")
            opened = self.directory / "opened"
            opened.mkdir()
            archive = f"backups/full/{full['backup_id']}.tar.gz.enc"
            self._pipe(("age", "-d", "-i", "holdfast.key", archive), ("tar", "xz", "-C", f"../{opened.name}"))
            name = "models/classifier-v1.safetensors"
            if (opened / "files" / name).read_bytes() != (self.home / name).read_bytes():
                raise _Failed(f"{name} in {archive} is not the model")
            count = self.database.predictions_in(opened)
            if count not in rows:
                raise _Failed(f"{archive} has {count} predictions, and not from {rows[0]} to {rows[-1]}")
            step.result = f"the model, and a database of {count:,} predictions"
            print(f"In it: {step.result}")

    @contextmanager
    def _step(self, title: str, name: str) -> Iterator[_Step]:
        print(f"\n# {title}\n", flush=True)
        step = _Step(name)
        started = time.monotonic()
        yield step
        step.seconds = time.monotonic() - started
        self.steps.append(step)

    def _compare(self, before: _State) -> str:
        now = self._state()
        if differences := list(before.differences(now)):
            raise _Failed(f"the service is not as it was before the disaster: {'; '.join(differences)}")
        return f"the same {len(now.answers):,} predictions, the same {now.rows:,} rows"

    def _state(self) -> _State:
        told = json.loads(self._output([sys.executable, "-c", _PREDICT]))
        return _State(told["version"], told["answers"], self.database.tables())

    def _backups(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            self._output([sys.executable, "-m", "holdfast", "list", "--json"])
        )
        return found

    def _newest(self) -> dict[str, Any]:
        return self._backups()[0]

    def _holdfast(self, *arguments: str) -> None:
        """Runs a command in sight of the person: its bars, lines and tables are its own."""
        print(f"$ holdfast {' '.join(arguments)}", flush=True)
        with self._child([sys.executable, "-m", "holdfast", *arguments]) as child:
            status = child.wait()
        if status != 0:
            raise _Failed(f"`holdfast {' '.join(arguments)}` ended with status {status}")

    def _service(self, *arguments: str) -> None:
        """Runs one of the service's own programs, named as it is within the service's sources."""
        shown = [_within(self.sources, argument) for argument in arguments]
        print(f"$ python {' '.join(arguments)}", flush=True)
        print(self._output([sys.executable, *shown]), end="", flush=True)

    @contextmanager
    def _traffic(self) -> Iterator[None]:
        """Has predictions written for as long as the block runs."""
        script = "scripts/traffic.py"
        print(f"$ python {script} --rate 50 &", flush=True)
        command = [sys.executable, _within(self.sources, script), "--rate", "50"]
        with self._child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
            assert child.stdout is not None
            first = child.stdout.readline()
            if not first.startswith("writing "):
                raise _Failed(f"the service cannot be asked: {first}{child.stdout.read()}".rstrip())
            print(first, end="", flush=True)
            yield
            child.terminate()
            print(child.stdout.read(), end="", flush=True)
        if child.returncode != 0:
            raise _Failed(f"{script} ended with status {child.returncode}")

    def _output(self, command: Sequence[str]) -> str:
        """What a program prints. What it complains of is shown only when it fails."""
        with self._child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            output, complaint = child.communicate()
        if child.returncode != 0:
            raise _Failed(
                f"`{' '.join(command[1:3])}` ended with status {child.returncode}: {complaint.strip()}",
                hint="`make setup` installs what the example service needs.",
            )
        return output

    def _pipe(self, first: Sequence[str], second: Sequence[str]) -> None:
        print(f"$ {' '.join(first)} | {' '.join(second)}", flush=True)
        with self._child(first, stdout=subprocess.PIPE) as writer:
            with self._child(second, stdin=writer.stdout) as reader:
                assert writer.stdout is not None
                writer.stdout.close()  # so that the one is told when the other ends early
                reader.wait()
            writer.wait()
        if writer.returncode != 0 or reader.returncode != 0:
            raise _Failed(
                f"{first[0]} ended with status {writer.returncode}, {second[0]} with {reader.returncode}"
            )

    @contextmanager
    def _child(self, command: Sequence[str], **streams: Any) -> Iterator[subprocess.Popen[str]]:
        """A program in the service's directory. It does not outlive the block, whatever ends that."""
        with subprocess.Popen(command, cwd=self.home, env=self.environment, text=True, **streams) as child:
            try:
                yield child
            except BaseException:
                child.terminate()
                try:
                    child.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    child.kill()
                raise


def _within(sources: Path, argument: str) -> str:
    return str(sources / argument) if argument.startswith("scripts/") else argument
