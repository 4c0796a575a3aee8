"""Several hosts write to one repository, and none can read it. Each believes itself, and those it is told to."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from conformance.trees import Trees, file, models, noise, plan_of, store_source
from forks import scratch
from holdfast.crypto import KeyRing, X25519Identity
from holdfast.errors import CorruptBackup, KeyMissing, KeyWrong, RepositoryError, StorageError
from holdfast.repository.dedup import _memories
from holdfast.repository.dedup._ids import chunk_id
from holdfast.repository.dedup._index_object import seal_index
from holdfast.repository.dedup._writer import parse_writer_key, spell_writer_key
from holdfast.storage.local import LocalStorage
from repository.dedup.hosts import READS, WRITE_ONLY, Host, Rogue, hosts, id_key_of

DAY = 25 * 3600
LITTLE = 10_000
"""Bytes that a backup adds of which everything is there."""
CONTENT = noise(900_000, 1)
TREES = models(file("files/models/a", CONTENT))


@pytest.fixture
def pair() -> Iterator[tuple[Host, Host]]:
    """Two hosts that share an id key. The first has a backup; the second trusts it."""
    with scratch() as top:
        first, second = hosts(top, "ab")
        first.make(TREES)
        second.join(first)
        second.trusts = [first]
        yield first, second


def test_what_a_trusted_host_has_stored_is_not_stored_again(pair: tuple[Host, Host]) -> None:
    first, second = pair
    metadata = second.make(TREES)
    assert metadata.size_bytes < LITTLE
    second.assert_restores(metadata, TREES)
    more = models(file("files/models/b", noise(500_000, 2)))
    second.make(more)
    first.trusts = [second]
    third = first.make(more)
    assert third.size_bytes < LITTLE
    first.assert_restores(third, more)


def test_nothing_is_taken_of_a_host_that_is_not_named(pair: tuple[Host, Host]) -> None:
    first, second = pair
    for trusts in ([], [Host(first.top, name="c")]):
        second.trusts = trusts
        metadata = second.make(models(file("files/models/a", CONTENT + bytes([len(trusts)]))))
        assert first.packs_of(metadata).isdisjoint(first.packs_of(first.repository().backups()[-1]))


def test_hosts_with_id_keys_of_their_own_share_nothing_and_break_nothing() -> None:
    with scratch() as top:
        first, second = hosts(top, "ab")
        first.trusts, second.trusts = [second], [first]
        for _ in range(2):
            for host in (first, second):
                host.assert_restores(host.make(TREES), TREES)
        assert id_key_of(first) != id_key_of(second)
        sizes = [known.size_bytes > 900_000 for known in reversed(first.repository().backups())]
        assert sizes == [True, True, False, False]


def test_a_repository_without_encryption_is_shared_as_well() -> None:
    with scratch() as top:
        first, second = hosts(top, "ab")
        first.encrypt = second.encrypt = False
        first.make(TREES)
        second.join(first)
        second.trusts = [first]
        assert second.make(TREES).size_bytes < LITTLE


def test_differences_of_a_trusted_host_come_with_what_they_rest_on(pair: tuple[Host, Host]) -> None:
    first, second = pair
    draw = np.random.default_rng(1)
    base = {f"layer.{n}": draw.normal(0, 0.02, (256, 512)).astype(np.float32) for n in range(4)}
    tuned = {k: v + draw.normal(0, 1e-6, v.shape).astype(np.float32) for k, v in base.items()}
    old, new = save(base, {"version": "1"}), save(tuned, {"version": "2"})
    first.make(models(file("files/models/a.safetensors", old)))
    live = first.locate("files/models/a.safetensors")
    assert live is not None
    live.parent.mkdir(parents=True)
    live.write_bytes(old)
    assert first.make(models(file("files/models/b.safetensors", new))).size_bytes < 0.7 * len(new)
    trees = models(file("files/models/c.safetensors", new))
    metadata = second.make(trees)
    assert metadata.size_bytes < 2 * LITTLE
    for known in second.repository().backups():
        if known.backup_id != metadata.backup_id:
            second.repository().delete(known)
    reader = Host(second.top, keys=READS, name="reader", clock=second.clock)
    for _ in range(2):
        reader.repository().collect()
        second.clock.forward(DAY)
    second.assert_restores(metadata, trees)


def test_what_is_known_of_both_is_taken_from_ones_own(pair: tuple[Host, Host]) -> None:
    first, second = pair
    second.trusts = []
    own = second.make(TREES)
    second.trusts = [first]
    assert second.packs_of(second.make(TREES)) == second.packs_of(own)


def test_an_index_is_read_once(pair: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair
    stranger = Host(first.top, name="c", clock=first.clock)
    stranger.make(models(file("files/models/c", b"of a stranger")))
    second.make(models(file("files/models/own", noise(50_000, 6))))
    first.make(models(file("files/models/n", noise(50_000, 7))))
    read = []

    def counted(source: Any) -> str:
        read.append(source)
        return claimed(source)

    claimed = _memories.claimed_writer
    monkeypatch.setattr(_memories, "claimed_writer", counted)
    for _ in range(2):
        second.make(TREES)
    assert len(read) == 1  # what the first wrote after the second had looked
    second.trusts = [first, stranger]
    second.make(TREES)
    assert len(read) == 2


def test_parity_and_what_else_lies_there_is_passed_over(pair: tuple[Host, Host]) -> None:
    first, second = pair
    for path in list((first.directory / "index").iterdir()):
        path.with_name(f"{path.name}.parity").write_bytes(b"HFPARITY")
    (first.directory / "index" / "notes.txt").write_text("mine")
    assert second.make(TREES).size_bytes < LITTLE


# A hostile host


TRUE, FALSE = noise(9_000, 3), noise(9_000, 4)
POISONED = models(file("files/models/poisoned", TRUE))


def poisoned(rogue: Rogue) -> Any:
    """A pack of the host, which says to hold a chunk and holds another one."""
    return rogue.pack([(chunk_id(rogue.id_key, TRUE), FALSE)])


def test_a_poisoned_chunk_of_a_host_that_is_not_trusted_is_never_used(pair: tuple[Host, Host]) -> None:
    first, second = pair
    rogue = Rogue.like(Host(first.top, name="rogue", clock=first.clock), first)
    rogue.index(poisoned(rogue))
    for host in (first, second):
        metadata = host.make(POISONED)
        assert not any(pack.startswith(rogue.keys.run) for pack in host.packs_of(metadata))
        host.assert_restores(metadata, POISONED)


def test_a_poisoned_chunk_of_a_host_that_is_trusted_is_found_by_reading(pair: tuple[Host, Host]) -> None:
    """What trusting it costs."""
    _, second = pair
    bad = Host(second.top, name="rogue", clock=second.clock)
    rogue = Rogue.like(bad, second)
    rogue.index(poisoned(rogue))
    second.trusts = [bad]
    metadata = second.make(POISONED)
    assert any(pack.startswith(rogue.keys.run) for pack in second.packs_of(metadata))
    with pytest.raises(CorruptBackup):
        second.assert_restores(metadata, POISONED)
    # Told to trust it no more, the host stores the chunk itself.
    second.trusts = []
    again = second.make(POISONED)
    second.assert_restores(again, POISONED)


def test_differences_from_chunks_of_a_host_go_with_the_trust_in_it(pair: tuple[Host, Host]) -> None:
    first, second = pair
    draw = np.random.default_rng(1)
    base = {f"layer.{n}": draw.normal(0, 0.02, (256, 512)).astype(np.float32) for n in range(4)}
    tuned = {k: v + draw.normal(0, 1e-6, v.shape).astype(np.float32) for k, v in base.items()}
    old, new = save(base, {"version": "1"}), save(tuned, {"version": "2"})
    live = second.locate("files/models/a.safetensors")
    assert live is not None
    live.parent.mkdir(parents=True)
    live.write_bytes(old)
    # The second has stored the base itself, loses it, and finds it with the first.
    before = second.make(models(file("files/models/a.safetensors", old)))
    first.make(models(file("files/models/a.safetensors", old)))
    (own,) = second.packs_of(before)
    (second.directory / "packs" / own[:2] / own).unlink()
    trees = models(file("files/models/a.safetensors", old), file("files/models/b.safetensors", new))
    resting = second.make(trees)
    assert resting.size_bytes < 0.7 * len(new)
    second.assert_restores(resting, trees)
    second.trusts = []
    trees = models(file("files/models/b.safetensors", new))
    alone = second.make(trees)
    assert second.packs_of(alone).isdisjoint(second.packs_of(resting))
    second.assert_restores(alone, trees)


def forged_signature(rogue: Rogue, victim: Host) -> None:
    path = rogue.host.directory / "index" / rogue.index(poisoned(rogue))
    data = path.read_bytes()
    path.write_bytes(data[:-96] + base64.b64decode(victim.signing.public) + data[-64:])


def signature_of_another_index(rogue: Rogue, victim: Host) -> None:
    (true,) = [path for path in (victim.directory / "index").iterdir() if rogue.keys.run not in path.name]
    path = rogue.host.directory / "index" / rogue.index(poisoned(rogue))
    path.write_bytes(path.read_bytes()[:-96] + true.read_bytes()[-96:])


def index_under_another_name(rogue: Rogue, victim: Host) -> None:
    (true,) = list((victim.directory / "index").iterdir())
    (rogue.host.directory / "index" / f"{rogue.keys.run}-0").write_bytes(true.read_bytes())


def packs_of_another_run(rogue: Rogue, victim: Host) -> None:
    table = poisoned(rogue)
    run = replace(rogue.keys, run="f" * 32)
    head = {"repository": rogue.repository, "key_file": rogue.key_file, "audience": "0" * 64}
    (path,) = list((victim.directory / "index").iterdir())
    whose = json.dumps(head | {"audience": audience_in(victim)}).encode() + b"\n"
    record = table.encode(pack=table.name, size=table.size, hash=table.hash)
    (path.parent / f"{run.run}-0").write_bytes(seal_index(run, 0, whose + record, victim.sign))
    (path.parent.parent / "keys" / f"{run.run}.age").write_bytes(
        (path.parent.parent / "keys" / f"{rogue.keys.run}.age").read_bytes()
    )


def audience_in(host: Host) -> str:
    return _memories.audience_digest(str(host.keys.recipients[0]))


@pytest.mark.parametrize(
    "forge", [forged_signature, signature_of_another_index, index_under_another_name, packs_of_another_run]
)
def test_an_index_in_a_trusted_name_that_is_not_true_is_told_and_not_believed(
    pair: tuple[Host, Host], forge: Callable[[Rogue, Host], None]
) -> None:
    first, second = pair
    rogue = Rogue.like(Host(first.top, name="rogue", clock=first.clock), first)
    forge(rogue, first)
    for _ in range(2):
        metadata, warnings = second.try_make(POISONED)
        assert len(warnings) == 1
        assert "forgery" in warnings[0]
        second.assert_restores(metadata, POISONED)


def test_a_damaged_index_of_a_trusted_host_costs_space_and_a_warning(pair: tuple[Host, Host]) -> None:
    first, second = pair
    (path,) = list((first.directory / "index").iterdir())
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    metadata, warnings = second.try_make(TREES)
    assert (len(warnings), metadata.size_bytes > 900_000) == (1, True)
    path.write_bytes(b"")
    assert second.try_make(TREES)[1] == []


def test_an_index_that_cannot_be_read_keeps_no_backup_from_being_made(
    pair: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where hosts share a directory under names that may not read each other's files."""
    _, second = pair
    open_ = LocalStorage.open

    def refuses(storage: LocalStorage, name: str) -> Any:
        if name.startswith("index/"):
            raise StorageError(f"cannot read {name}: Permission denied")
        return open_(storage, name)

    monkeypatch.setattr(LocalStorage, "open", refuses)
    metadata, warnings = second.try_make(TREES)
    assert (len(warnings), metadata.size_bytes > 900_000) == (1, True)
    second.trusts = []
    assert second.try_make(TREES)[1] == []


@pytest.mark.parametrize("lost", ["packs", "keys"])
def test_an_index_that_is_put_back_when_all_else_is_gone_is_not_believed(
    pair: tuple[Host, Host], lost: str
) -> None:
    first, second = pair
    for path in (first.directory / lost).rglob("*"):
        if path.is_file():
            path.unlink()
    metadata = second.make(TREES)
    assert metadata.size_bytes > 900_000
    second.assert_restores(metadata, TREES)


@pytest.mark.parametrize("when", ["before", "after"])
def test_packs_are_not_relied_on_when_their_key_file_was_replaced(pair: tuple[Host, Host], when: str) -> None:
    first, second = pair
    run = run_of_first(first)
    other = models(file("files/models/o", b"something"))
    if when == "after":
        second.make(other)
    (path,) = [path for path in (first.directory / "keys").iterdir() if run in path.name]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    metadata = second.make(TREES)
    assert metadata.size_bytes > 900_000
    second.assert_restores(metadata, TREES)


def run_of_first(host: Host) -> str:
    """The run of the oldest index object."""
    oldest = min((host.directory / "index").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return oldest.name.partition("-")[0]


def test_a_pack_that_is_shorter_than_its_writer_said_is_not_relied_on(pair: tuple[Host, Host]) -> None:
    first, second = pair
    (path,) = list((first.directory / "packs").rglob("*-0"))
    path.write_bytes(path.read_bytes()[:-1])
    metadata = second.make(TREES)
    assert metadata.size_bytes > 900_000
    second.assert_restores(metadata, TREES)


def test_what_others_encrypt_to_others_is_not_relied_on(pair: tuple[Host, Host]) -> None:
    _, second = pair
    other = X25519Identity(bytes(range(3, 35)))
    second.keys = KeyRing((other.recipient,), ())
    assert second.make(TREES).size_bytes > 900_000
    second.keys = WRITE_ONLY
    metadata = second.make(TREES)
    assert metadata.size_bytes < LITTLE
    second.assert_restores(metadata, TREES)


def test_an_index_of_another_repository_is_not_believed(pair: tuple[Host, Host]) -> None:
    first, second = pair
    rogue = Rogue.like(first, first)
    keys = replace(rogue.keys, repository="e" * 32)
    rogue = replace(rogue, keys=keys)
    rogue.index(poisoned(rogue))
    metadata = second.make(POISONED)
    assert not any(pack.startswith(keys.run) for pack in second.packs_of(metadata))
    second.assert_restores(metadata, POISONED)


# Beside `gc`


def free(host: Host) -> list[str]:
    return Host(host.top, keys=READS, name="gc", clock=host.clock).repository().collect().deleted


def test_a_pack_that_is_condemned_is_not_relied_on(pair: tuple[Host, Host]) -> None:
    first, second = pair
    first.repository().delete(first.repository().find("latest"))
    assert free(first) == []
    metadata = second.make(TREES)
    assert metadata.size_bytes > 900_000
    first.clock.forward(DAY)
    assert free(first) != []
    second.assert_restores(metadata, TREES)


def test_a_pack_that_is_condemned_while_another_host_relies_on_it_stays(pair: tuple[Host, Host]) -> None:
    first, second = pair
    first.repository().delete(first.repository().find("latest"))
    with second.repository().begin(plan_of(TREES)) as run:
        second.clock.forward(60)
        free(first)
        first.clock.forward(DAY)
        assert free(first) == []
        store_source(run, ("models", "main"), TREES["models", "main"])
        metadata = run.commit(warnings=0, duration_seconds=0)
    assert metadata.size_bytes < LITTLE
    for _ in range(2):
        first.clock.forward(DAY)
        free(first)
    second.assert_restores(metadata, TREES)


@pytest.mark.parametrize("lost", ["packs", "keys"])
def test_no_backup_is_made_of_what_went_while_it_was_made(pair: tuple[Host, Host], lost: str) -> None:
    _, second = pair

    def make() -> None:
        with second.repository().begin(plan_of(TREES)) as run:
            store_source(run, ("models", "main"), TREES["models", "main"])
            for path in (second.directory / lost).rglob("*"):
                if path.is_file() and run.store._keys.run not in path.name:
                    path.unlink()
            run.commit(warnings=0, duration_seconds=0)

    with pytest.raises(RepositoryError, match="were deleted while"):
        make()


@pytest.mark.parametrize("seed", range(5))
def test_whatever_hosts_do_beside_each_other_every_backup_restores(seed: int) -> None:
    draw = random.Random(seed)
    with scratch() as top:
        every = hosts(top, "abc")
        every[0].make(TREES)
        for host in every[1:]:
            host.join(every[0])
        made: dict[str, Trees] = {}
        stored = 0
        for _ in range(40):
            host = draw.choice(every)
            match draw.choices(["make", "trust", "delete", "free", "forget"], [6, 2, 2, 5, 1])[0]:
                case "make":
                    picked = draw.sample(range(6), 2)
                    trees = models(
                        *(file(f"files/models/{n}", noise(30_000, 50 + n)) for n in sorted(picked))
                    )
                    metadata = host.make(trees)
                    made[metadata.backup_id] = trees
                    stored += metadata.size_bytes
                case "trust":
                    host.trusts = [other for other in every if other is not host and draw.random() < 0.7]
                case "delete":  # most of them, so that much is freed
                    for backup_id in draw.sample(sorted(made), len(made) * 3 // 4):
                        host.repository().delete(host.repository().find(backup_id))
                        del made[backup_id]
                case "free":
                    host.clock.forward(DAY)
                    free(host)
                case "forget":
                    for path in host.memory.glob("chunks-*"):
                        path.unlink()
        assert stored < 40 * 60_000 / 2
        for backup_id, trees in made.items():
            host.assert_restores(host.repository().find(backup_id), trees)


# What a host has lost, and what it is given


def test_a_host_that_cannot_read_learns_again_what_it_has_stored_itself(pair: tuple[Host, Host]) -> None:
    first, _ = pair
    for path in first.memory.glob("chunks-*"):
        path.unlink()
    metadata = first.make(TREES)
    assert metadata.size_bytes < LITTLE
    first.assert_restores(metadata, TREES)


def test_backups_that_are_given_to_other_recipients_are_shared_on(pair: tuple[Host, Host]) -> None:
    first, second = pair
    before = second.make(TREES)
    other = X25519Identity(bytes(range(3, 35)))
    for metadata in second.repository().backups():
        second.repository().rewrap(metadata, READS, KeyRing((other.recipient,), (other,)))
    second.keys = KeyRing((other.recipient,), ())
    again = second.make(TREES)
    assert again.size_bytes < LITTLE
    assert before.backup_id != again.backup_id
    assert first.make(TREES).size_bytes > 900_000  # its own recipient opens none of the old keys any more


@given(repository=st.binary(min_size=16, max_size=16), id_key=st.binary(min_size=32, max_size=32))
def test_a_writer_key_is_read_as_it_was_spelled(repository: bytes, id_key: bytes) -> None:
    text = spell_writer_key(repository.hex(), id_key)
    assert text.startswith("HOLDFAST-WRITER-1")
    assert parse_writer_key(f"{text}\n") == (repository.hex(), id_key)
    with pytest.raises(KeyWrong) as caught:
        parse_writer_key(text[:-1] + ("Q" if text[-1] != "Q" else "P"))
    assert text[17:30] not in str(caught.value)


@pytest.mark.parametrize("text", ["", "x", "correct horse", "age1", WRITE_ONLY.recipients[0]], ids=repr)
def test_what_is_no_writer_key_is_refused(pair: tuple[Host, Host], text: object) -> None:
    _, second = pair
    with pytest.raises(KeyWrong, match="writer key"):
        second.repository().adopt_writer_key(str(text))


def test_a_writer_key_is_of_one_repository(pair: tuple[Host, Host]) -> None:
    first, second = pair
    _, id_key = parse_writer_key(first.repository().writer_key())
    with pytest.raises(KeyWrong, match="of repository"):
        second.repository().adopt_writer_key(spell_writer_key("0" * 32, id_key))


def test_a_host_that_has_made_backups_keeps_its_id_key(pair: tuple[Host, Host]) -> None:
    first, second = pair
    other = Host(first.top, name="c", clock=first.clock)
    other.make(TREES)
    before = id_key_of(other)
    with pytest.raises(RepositoryError, match="an id key of its own") as caught:
        other.repository().adopt_writer_key(first.repository().writer_key())
    assert id_key_of(other) == before
    assert str(other.memory / "writer.json") in caught.value.hint
    (other.memory / "writer.json").unlink()
    assert other.repository().adopt_writer_key(first.repository().writer_key()) is True
    assert second.repository().adopt_writer_key(first.repository().writer_key()) is False


def test_who_has_the_identity_reads_the_writer_key(pair: tuple[Host, Host]) -> None:
    first, second = pair
    reader = Host(first.top, name="c", keys=READS, signing=first.signing)
    assert reader.repository().writer_key() == second.repository().writer_key()
    with pytest.raises(KeyMissing, match="no id key"):
        Host(first.top, name="d", keys=WRITE_ONLY).repository().writer_key()


def test_the_memory_of_another_hosts_chunks_is_private(pair: tuple[Host, Host]) -> None:
    _, second = pair
    second.make(models(*TREES["models", "main"].values(), file("files/models/more", b"more")))
    found = [path for path in second.memory.iterdir() if path.name.startswith("chunks-")]
    assert len([path for path in found if path.suffix != ".lock"]) == 2
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}
