"""What every `Repository` promises. A new one is tested by a subclass of each suite that gives `ground`.

Here: what is stored comes back, incrementals included. `conformance.catalog` has which backups there are and who
may touch them; `conformance.faults`, what happens when something goes wrong.
"""

from __future__ import annotations

import pytest

from conformance.ground import Ground, ignore_progress
from conformance.trees import (
    SMALL,
    Node,
    Trees,
    assert_holds,
    directory,
    expected,
    file,
    hardlink,
    models,
    noise,
    read_back,
    store,
    symlink,
    tree,
)
from holdfast.crypto import verify
from holdfast.model import BackupMetadata, Entry, SourceRecord
from holdfast.repository.base import Repository, RunPlan

EVERYTHING: Trees = {
    ("database", "main"): tree(file("database/main.db", noise(700_000, 1), token="wal 4096 8192")),
    ("models", "main"): tree(
        directory("files/models"),
        file("files/models/empty", b""),
        file("files/models/just-below", noise(SMALL - 1, 2)),
        file("files/models/just-at", noise(SMALL, 3)),
        file("files/models/just-above", noise(SMALL + 1, 4)),
        file("files/models/large", noise(3_000_000, 5) + bytes(2_000_000), sparse=True),
        directory("files/models/nothing in it", uid=3_000_000, gid=2_200_000),
        hardlink("files/models/other name", "files/models/empty"),
        symlink("files/models/up", "../../anywhere"),
    ),
    ("config", "main"): tree(
        file("absolute/etc/service.conf", b"a", mode=0o4755, uid=1000, gid=1000, racy=True),
        file("files/.env", b"SECRET=1\n", mode=0o600, mtime_ns=-1_500_000_001, ctime_ns=1, inode=2**64 - 1),
        directory("files/config", xattrs={"user.on a directory": b"yes"}),
        file(
            "files/config/caf\u00e9 \U0001f40d\n.yaml",
            b"b",
            xattrs={"user.k": bytes(range(256)), "user.e": b""},
        ),
        file("files/config/not \udcff utf-8", b"c"),
        symlink("files/config/" + "n" * 200, "t" * 300),
    ),
    ("config", "other"): tree(directory("files/conf.d")),
    ("logs", "main"): tree(directory("files/logs"), file("files/logs/service.log", b"line\n" * 1000)),
}


class RepositorySuite:
    """Backups come back as they were stored."""

    @pytest.fixture
    def ground(self) -> Ground:
        raise NotImplementedError

    @pytest.fixture
    def repository(self, ground: Ground) -> Repository:
        return ground.repository()

    def test_everything_about_every_kind_of_entry_comes_back(self, ground: Ground) -> None:
        metadata = store(ground.repository(), EVERYTHING)
        assert_holds(ground.repository(), metadata, EVERYTHING)
        ground.repository().verify(metadata, deep=True, progress=ignore_progress)

    def test_add_returns_the_entry_as_it_is_stored(self, repository: Repository) -> None:
        wanted = expected(models(file("files/models/a", b"abc"), file("files/models/b", noise(400_000, 1))))
        with repository.begin(RunPlan("full", ("models",), None)) as run:
            run.begin_source("models", "main")
            added = [
                run.add(node.entry._replace(digest=""), None if node.content is None else _Whole(node), None)
                for node in wanted["models", "main"].values()
            ]
            run.end_source(SourceRecord("models", "main", "files", ("files/models",)))
            metadata = run.commit(warnings=0, duration_seconds=0)
        read = read_back(repository, metadata)["models", "main"]
        assert added == [node.entry for node in read.values()]

    def test_metadata_tells_what_the_backup_holds(self, ground: Ground) -> None:
        metadata = store(ground.repository(), EVERYTHING, tags=("nightly", "eu"))
        assert ground.repository().find(metadata.backup_id) == metadata
        assert metadata.backup_id == "full_20240101_020000"
        assert metadata.timestamp == "2024-01-01T02:00:00"
        assert (metadata.type, metadata.status, metadata.parent) == ("full", "success", None)
        assert metadata.components == ("database", "models", "config", "logs")
        assert metadata.tags == ("nightly", "eu")
        nodes = [node for nodes in EVERYTHING.values() for node in nodes.values()]
        assert metadata.entries == len(nodes)
        assert metadata.source_bytes == sum(len(node.content or b"") for node in nodes)
        assert (metadata.warnings, metadata.duration_seconds) == (0, 1.5)

    def test_sources_come_back_in_order_each_with_its_own_counts(self, ground: Ground) -> None:
        metadata = store(ground.repository(), EVERYTHING)
        with ground.repository().open(metadata) as stored:
            sources = list(stored.sources())
        assert [source.key for source in sources] == sorted(source.key for source in sources)
        for source in sources:
            nodes = EVERYTHING[source.component, source.name]
            assert source.entries == len(nodes)
            assert source.bytes == sum(len(node.content or b"") for node in nodes.values())
            assert source.moment == {"entries": len(nodes)}

    @pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
    def test_rotated_logs_are_not_mistaken_for_anything_else(self, ground: Ground, kind: str) -> None:
        line = noise(600_000, 1)
        before: Trees = {
            ("logs", "main"): tree(directory("files/logs"), file("files/logs/service.log", line))
        }
        names = [f"files/logs/service.log.{name}" for name in ("1", "00001", "00002")]
        makers = {
            "file": lambda path: file(path, b"old"),
            "directory": directory,
            "symlink": lambda path: symlink(path, "x"),
        }
        rotated = [makers[kind](path) for path in names]
        nodes = (directory("files/logs"), file("files/logs/service.log", line + b"more"), *rotated)
        after: Trees = {("logs", "main"): tree(*nodes)}
        full = store(ground.repository(), before)
        ground.clock.forward()
        incremental = store(ground.repository(), after, parent=full)
        assert_holds(ground.repository(), incremental, after)
        ground.repository().verify(incremental, deep=True, progress=ignore_progress)

    @pytest.mark.parametrize("size", [0, 1, SMALL, 3_000_000, (32 << 20) + 1])
    def test_a_dump_whose_size_is_known_only_at_its_end_comes_back(self, ground: Ground, size: int) -> None:
        content = noise(min(size, 1_000_000), 1) + bytes(max(size - 1_000_000, 0))
        trees: Trees = {("database", "main"): tree(file("database/main.dump", content, sized=False))}
        metadata = store(ground.repository(), trees)
        assert_holds(ground.repository(), metadata, trees)
        ground.repository().verify(metadata, deep=True, progress=ignore_progress)

    def test_a_dump_of_unknown_size_costs_an_incremental_what_changed_in_it(self, ground: Ground) -> None:
        content = noise(4_000_000, 1)
        changed = content[:2_000_000] + b"changed rows" + content[2_040_000:]
        full = store(
            ground.repository(),
            {("database", "main"): tree(file("database/main.dump", content, sized=False))},
        )
        ground.clock.forward()
        trees: Trees = {("database", "main"): tree(file("database/main.dump", changed, sized=False))}
        incremental = store(ground.repository(), trees, parent=full)
        assert incremental.size_bytes < (800_000 if ground.is_chained else 1_600_000)
        assert_holds(ground.repository(), incremental, trees)
        ground.repository().verify(incremental, deep=True, progress=ignore_progress)

    def test_entries_can_be_read_in_any_order_and_more_than_once(self, ground: Ground) -> None:
        metadata = store(ground.repository(), EVERYTHING)
        with ground.repository().open(metadata) as stored:
            entries = [entry for source in stored.sources() for entry in stored.entries(source)]
            files = [entry for entry in entries if entry.kind == "file"]
            contents = {entry.path: b"".join(map(bytes, stored.read(entry))) for entry in files[::-1] + files}
        nodes = {path: node for nodes in EVERYTHING.values() for path, node in nodes.items()}
        assert all(contents[entry.path] == nodes[entry.path].content for entry in files)

    def test_an_incremental_of_what_has_not_changed_holds_everything_and_is_small(
        self, ground: Ground
    ) -> None:
        full = store(ground.repository(), EVERYTHING)
        ground.clock.forward()
        unchanged = store(ground.repository(), EVERYTHING, parent=full)
        assert unchanged.parent == full.backup_id
        assert unchanged.source_bytes == full.source_bytes
        assert unchanged.size_bytes < full.size_bytes / 100
        # An entry that was modified just before it was read is not to be believed by its times: it is read again.
        assert_holds(ground.repository(), unchanged, EVERYTHING)

    def test_a_small_change_in_a_large_file_costs_little(self, ground: Ground) -> None:
        content = noise(4_000_000, 1)
        changed = content[:2_000_000] + b"changed" + content[2_000_010:] + b"grown"
        full = store(ground.repository(), models(file("files/models/a", content)))
        ground.clock.forward()
        trees = models(file("files/models/a", changed))
        incremental = store(ground.repository(), trees, parent=full)
        assert incremental.size_bytes < (800_000 if ground.is_chained else 1_600_000)
        assert_holds(ground.repository(), incremental, trees)
        ground.repository().verify(incremental, deep=True, progress=ignore_progress)

    def test_an_entry_can_become_anything_else(self, ground: Ground) -> None:
        def nodes(path: str, kind: str, seed: int) -> list[Node]:
            kinds: dict[str, list[Node]] = {
                "file": [file(path, b"small %d" % seed)],
                "large": [file(path, noise(600_000, seed))],
                "empty": [file(path, b"", mtime_ns=seed)],
                "directory": [
                    directory(path),
                    directory(path + "/d"),
                    file(path + "/d/x", b"x%d" % seed),
                    file(path + "/y", noise(300_000, seed)),
                ],
                "symlink": [symlink(path, f"target {seed}")],
                "hardlink": [hardlink(path, "files/models/a")],
                "gone": [],
            }
            return kinds[kind]

        # Names around it that would be caught by carelessness about prefixes and slashes.
        around = [file(f"files/models/{name}", b"same") for name in ("a", "m.txt", "m-", "m0", "z")]
        kinds = ("file", "large", "empty", "directory", "symlink", "hardlink", "gone")
        before, after = models(*around), models(*around)
        for first in kinds:
            for then in kinds:
                path = f"files/models/m/{first} to {then}"
                for trees, kind, seed in ((before, first, 1), (after, then, 2)):
                    trees["models", "main"] |= tree(
                        directory("files/models/m"),
                        directory(path),
                        *nodes(f"{path}/m", kind, seed),
                        file(f"{path}/m.txt", b"after it"),
                    )
        full = store(ground.repository(), before)
        ground.clock.forward()
        incremental = store(ground.repository(), after, parent=full)
        assert_holds(ground.repository(), incremental, after)
        assert_holds(ground.repository(), full, before)
        ground.repository().verify(incremental, deep=True, progress=ignore_progress)

    def test_what_the_parent_has_and_was_not_asked_for_is_gone(self, ground: Ground) -> None:
        deep = [directory("files/models/" + "/".join("abcdef"[: n + 1])) for n in range(6)]
        full = store(
            ground.repository(), models(*deep, file("files/models/a/b/x", b"x"), file("files/models/z", b""))
        )
        ground.clock.forward()
        left = models(file("files/models/z", b""))
        incremental = store(ground.repository(), left, parent=full)
        assert_holds(ground.repository(), incremental, left)
        ground.clock.forward()
        nothing: Trees = {("models", "main"): tree(directory("files/models"))}
        assert_holds(ground.repository(), store(ground.repository(), nothing, parent=incremental), nothing)

    def test_known_is_what_the_parent_has(self, ground: Ground) -> None:
        trees = models(
            file("files/models/a", b"1"), directory("files/models/b"), file("files/models/b/c", b"2")
        )
        full = store(ground.repository(), trees)
        stored = read_back(ground.repository(), full)["models", "main"]
        ground.clock.forward()
        with ground.repository().begin(RunPlan("incremental", ("models", "config"), full)) as run:
            assert run.begin_source("models", "main")
            for path, node in stored.items():
                assert run.known(path[:-1] + "!") is None
                known = run.known(path)
                assert known is not None
                assert known.entry == node.entry
                run.keep(known)
            assert run.known("files/models/zzz") is None
            run.end_source(SourceRecord("models", "main", "files", ("files/models",)))
            assert not run.begin_source("config", "main")
            assert run.known("files/config") is None
            run.add(Entry("files/config", "directory"), None, None)
            run.end_source(SourceRecord("config", "main", "files", ("files/config",)))
            run.commit(warnings=0, duration_seconds=0)

    def test_a_component_that_the_parent_lacks_is_carried_whole(self, ground: Ground) -> None:
        before = {key: nodes for key, nodes in EVERYTHING.items() if key[0] != "models"}
        full = store(ground.repository(), before)
        ground.clock.forward()
        incremental = store(ground.repository(), EVERYTHING, parent=full)
        assert_holds(ground.repository(), incremental, EVERYTHING)

    def test_a_source_that_is_no_longer_selected_is_neither_held_nor_deleted(self, ground: Ground) -> None:
        full = store(ground.repository(), EVERYTHING)
        ground.clock.forward()
        selected = {key: nodes for key, nodes in EVERYTHING.items() if key[0] in ("database", "logs")}
        incremental = store(ground.repository(), selected, parent=full)
        assert incremental.components == ("database", "logs")
        assert_holds(ground.repository(), incremental, selected)
        assert_holds(ground.repository(), full, EVERYTHING)
        ground.clock.forward()
        again = store(ground.repository(), EVERYTHING, parent=incremental)
        assert_holds(ground.repository(), again, EVERYTHING)

    def test_a_chain_of_four_restores_each_of_its_states(self, ground: Ground) -> None:
        base = noise(2_000_000, 1)
        states = [
            models(
                file("files/models/large", base[: 400_000 * level] + b"%d" % level + base[400_000 * level :]),
                file("files/models/small", b"%d" % level),
                *([directory("files/models/d"), file("files/models/d/x", b"x")] if level % 2 == 0 else []),
                *([file("files/models/d", b"a file here")] if level % 2 == 1 else []),
            )
            for level in range(5)
        ]
        made: list[BackupMetadata] = []
        for state in states:
            made.append(store(ground.repository(), state, parent=made[-1] if made else None))
            ground.clock.forward()
        for metadata, state in zip(made, states, strict=True):
            assert_holds(ground.repository(), metadata, state)
        ground.repository().verify(made[-1], deep=True, progress=ignore_progress)
        assert ground.repository().chain(made[-1]) == (made[::-1] if ground.is_chained else [made[-1]])
        assert all(level.size_bytes < made[0].size_bytes / 2 for level in made[1:])

    def test_an_incremental_needs_no_memory_of_its_parent(self, ground: Ground) -> None:
        full = store(ground.repository(), EVERYTHING)
        ground.forget()
        ground.clock.forward()
        changed = EVERYTHING | {
            ("config", "other"): tree(directory("files/conf.d"), file("files/conf.d/a", b"1"))
        }
        incremental = store(ground.repository(), changed, parent=full)
        assert incremental.size_bytes < full.size_bytes / 100
        assert_holds(ground.repository(), incremental, changed)

    def test_a_backup_says_who_made_it(self, ground: Ground) -> None:
        one = store(ground.repository(), models(file("files/models/a", b"1")))
        ground.clock.forward()
        two = store(ground.repository(), models(file("files/models/a", b"1")))
        statements = set()
        for metadata in one, two:
            signature, statement = ground.repository().signature_of(metadata)
            assert signature is not None
            assert verify(signature.key, signature.value, statement)
            statements.add(statement)
        assert len(statements) == 2


class _Whole:
    """A node's content, as `Stored`."""

    def __init__(self, node: Node) -> None:
        assert node.content is not None
        self.size = len(node.content)
        small = self.size <= SMALL
        self.data = node.content if small else None
        self.stream = None if small else iter([node.content])
