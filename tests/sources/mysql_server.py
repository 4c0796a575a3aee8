"""A MariaDB (or MySQL) server of the tests' own, and databases that have something of everything."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymysql
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import URL

NEEDED = ("mariadbd", "mariadb-install-db", "mariadb-dump")
PASSWORD = "p\"a'ss\\#; wörd=%"
DEADLINE = 60.0


@dataclass
class Server:
    """A running server."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> str:
        return str(self.directory / "server.sock")

    def url(self, database: str, *, user: str = "root", tcp: bool = False, dialect: str = "mariadb") -> URL:
        """Where a database is; `user` logs in with `PASSWORD`."""
        if tcp:
            return URL.create(dialect, user, PASSWORD, "127.0.0.1", self.port, database)
        query = {"unix_socket": self.socket, "charset": "utf8mb4"}
        return URL.create(dialect, user, PASSWORD, database=database, query=query)

    def connect(self, database: str | None = None, **options: Any) -> pymysql.Connection[Any]:
        return pymysql.connect(
            unix_socket=self.socket,
            user="root",
            password=PASSWORD.encode(),
            database=database,
            autocommit=True,
            charset="utf8mb4",
            **options,
        )

    def run(self, *statements: str, database: str | None = None) -> None:
        """Runs statements, as root."""
        with contextlib.closing(self.connect(database)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def rows(self, query: str, database: str | None = None) -> list[tuple[Any, ...]]:
        with contextlib.closing(self.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def schemas(self, pattern: str) -> list[str]:
        """Names that a regular expression finds."""
        rows = self.rows(
            f"SELECT SCHEMA_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME REGEXP '{pattern}'"
        )
        return sorted(str(row[0]) for row in rows)

    def drop(self, *names: str) -> None:
        self.run(*(f"DROP DATABASE IF EXISTS `{name}`" for name in names))


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """A private server, without the rights of root. Skips the test where none is installed."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} not found: install mariadb-server and mariadb-client")
    # In memory where that is possible: hundreds of changes to tables need not wait for a disk.
    memory = "/dev/shm"
    in_memory = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    with tempfile.TemporaryDirectory(prefix="holdfast-mysql-", dir=memory if in_memory else None) as name:
        directory = Path(name)
        other = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam("nobody")
            os.chown(directory, account.pw_uid, account.pw_gid)
            other = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        data = directory / "data"
        environ = {**os.environ, "HOME": name, "TMPDIR": name}
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            check=True,
            capture_output=True,
            cwd=name,
            env=environ,
            **other,
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        certificates = make_certificates(directory)
        with open(directory / "server.log", "wb") as log:
            process = subprocess.Popen(
                [
                    "mariadbd",
                    "--no-defaults",
                    f"--datadir={data}",
                    f"--socket={directory / 'server.sock'}",
                    f"--port={port}",
                    "--bind-address=127.0.0.1",
                    f"--pid-file={directory / 'server.pid'}",
                    "--server-id=1",
                    "--log-bin=binlog",
                    "--innodb-flush-log-at-trx-commit=0",
                    "--innodb-buffer-pool-size=64M",
                    "--innodb-log-file-size=16M",
                    "--sync-binlog=0",
                    "--character-set-server=utf8mb4",
                    "--event-scheduler=ON",
                    *certificates,
                ],
                stdout=log,
                stderr=log,
                cwd=name,
                env=environ,
                **other,
            )
        try:
            server = Server(directory, port, process)
            wait_for(server)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def make_certificates(directory: Path) -> list[str]:
    """A certificate for 127.0.0.1 and who vouches for it (``ca.pem``), and somebody else (``other.pem``); the
    server's options for them."""
    moment = datetime.now(UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "other", "server")}
    for name, key in keys.items():
        issuer = "ca" if name == "server" else name
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - timedelta(days=1))
            .not_valid_after(moment + timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca=name != "server", path_length=None), critical=True)
        )
        if name == "server":
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        certificate = builder.sign(keys[issuer], hashes.SHA256())
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = directory / "server.key"
    secret.write_bytes(
        keys["server"].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    status = directory.stat()
    if os.geteuid() == 0:
        os.chown(secret, status.st_uid, status.st_gid)
    return [f"--ssl-cert={directory / 'server.pem'}", f"--ssl-key={secret}"]


def wait_for(server: Server) -> None:
    """Until it answers; then root has a password."""
    end = time.monotonic() + DEADLINE
    while True:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(server.socket)
            break
        assert server.process.poll() is None, (server.directory / "server.log").read_text()
        assert time.monotonic() < end, "the server does not answer"
        time.sleep(0.05)
    connection = pymysql.connect(unix_socket=server.socket, user="root", autocommit=True)
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("SET PASSWORD FOR root@localhost = PASSWORD(%s)", (PASSWORD,))
        cursor.execute("CREATE OR REPLACE USER root@'127.0.0.1' IDENTIFIED BY %s", (PASSWORD,))
        cursor.execute("GRANT ALL PRIVILEGES ON *.* TO root@'127.0.0.1' WITH GRANT OPTION")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One for all tests of a worker."""
    with running_server() as started:
        yield started


def make_everything(server: Server, name: str) -> None:
    """A database with something of everything. It calls itself by its name where one can."""
    server.run(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")
    server.run(*_EVERYTHING, database=name)
    every = bytes(range(256))
    with contextlib.closing(server.connect(name)) as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_mode = ''")
        cursor.execute(
            "INSERT INTO kinds (txt, bin, bits, js, stamp, zero, amount, place)"
            " VALUES (%s, _binary %s, b'10101', %s, %s, %s, %s, ST_GeomFromText('POINT(1 2)'))",
            (
                "it's; \n ('x'), \\ \" ` 😀 é",
                every,
                '{"a": [1, "ü"]}',
                "2024-02-29 23:59:59.123456",
                "0000-00-00",
                "12.50",
            ),
        )
        cursor.execute("INSERT INTO kinds (txt) VALUES (NULL), (''), ('\\\\'), ('\\\\\\''), ('))((;\\n')")
        cursor.execute("INSERT INTO parent (name) VALUES ('a'), ('b')")
        cursor.execute("INSERT INTO child (parent_id, note) VALUES (1, 'one'), (2, 'two')")
        cursor.execute("INSERT INTO `naïve ``table``; é` (`c'o\"l`) VALUES (1)")
        cursor.execute("INSERT INTO measured VALUES (1, '2023-05-05'), (2, '2024-05-05'), (3, '2030-01-01')")
        cursor.execute("INSERT INTO numbered (x) VALUES (7), (8)")
        cursor.execute("INSERT INTO versioned (a) VALUES (1)")
        cursor.execute("UPDATE versioned SET a = 2")
        cursor.execute(f"CREATE VIEW named AS SELECT `{name}`.plus(id) AS q, id FROM `{name}`.parent")
        cursor.execute("CREATE VIEW above AS SELECT q, 'a\\nb; `x`.`y`(' AS text FROM named WHERE q <> ';'")
        cursor.execute("CREATE SQL SECURITY INVOKER VIEW aaa AS SELECT * FROM above")
        cursor.execute(f"CREATE VIEW alias AS SELECT `{name}`.id FROM parent `{name}`")
        cursor.execute("CREATE VIEW strict AS SELECT * FROM parent WHERE id > 0 WITH CASCADED CHECK OPTION")
        cursor.execute(
            f"CREATE TRIGGER `{name}`.`on child` AFTER INSERT ON `{name}`.child FOR EACH ROW"
            " BEGIN -- don't ;;\n INSERT INTO audit (what) VALUES (CONCAT('n;;', NEW.id)); END"
        )
        cursor.execute(
            "CREATE TRIGGER second AFTER INSERT ON child FOR EACH ROW FOLLOWS `on child` SET @second = NEW.id"
        )
        cursor.execute("SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'")
        cursor.execute(
            """CREATE TRIGGER/* odd */"quoted ""name"
            BEFORE UPDATE ON "parent" FOR EACH ROW SET @path = 'C:\\', @other = "new".name"""
        )
        cursor.execute("SET sql_mode = 'ORACLE'")
        cursor.execute("CREATE PACKAGE pack AS FUNCTION one RETURN INT; END")
        cursor.execute("CREATE PACKAGE BODY pack AS FUNCTION one RETURN INT AS BEGIN RETURN 1; END; END")
        cursor.execute("SET sql_mode = ''")
        # Programs remember the collation under which they were made.
        cursor.execute(f"ALTER DATABASE `{name}` COLLATE utf8mb4_general_ci")
        cursor.execute("SET NAMES latin1")
        cursor.execute("CREATE PROCEDURE latin() SELECT 'é'".encode("latin1"))


_EVERYTHING = (
    (
        "CREATE TABLE parent (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(40) NOT NULL DEFAULT 'it''s')"
        " AUTO_INCREMENT = 1 COMMENT 'a; \\n comment'"
    ),
    (
        "CREATE TABLE child (id INT AUTO_INCREMENT PRIMARY KEY, parent_id INT, note TEXT,"
        " FOREIGN KEY (parent_id) REFERENCES parent (id) ON DELETE CASCADE, KEY (parent_id)) AUTO_INCREMENT = 1000"
    ),
    "CREATE TABLE audit (id INT AUTO_INCREMENT PRIMARY KEY, what TEXT)",
    (
        "CREATE TABLE kinds (id INT AUTO_INCREMENT PRIMARY KEY, txt TEXT, bin BLOB, bits BIT(5), js JSON,"
        " stamp DATETIME(6), zero DATE, amount DECIMAL(10,2), place POINT,"
        " len INT GENERATED ALWAYS AS (LENGTH(txt)) STORED, up VARCHAR(9) GENERATED ALWAYS AS (LEFT(txt, 3)) VIRTUAL,"
        " CONSTRAINT sane CHECK (amount <> 3 OR txt <> 'it''s;'))"
    ),
    "CREATE TABLE `naïve ``table``; é` (`c'o\"l` INT PRIMARY KEY)",
    (
        "CREATE TABLE measured (id INT, day DATE NOT NULL, PRIMARY KEY (id, day)) PARTITION BY RANGE (YEAR(day))"
        " (PARTITION p0 VALUES LESS THAN (2024), PARTITION p1 VALUES LESS THAN MAXVALUE)"
    ),
    "CREATE SEQUENCE counter START WITH 5 INCREMENT BY 10",
    "CREATE TABLE numbered (id BIGINT DEFAULT NEXTVAL(counter) PRIMARY KEY, x INT)",
    "CREATE TABLE versioned (a INT) WITH SYSTEM VERSIONING",
    "CREATE TABLE empty (a INT)",
    "CREATE TABLE latin (a VARCHAR(9)) CHARACTER SET latin1",
    "CREATE FUNCTION plus(x INT) RETURNS INT DETERMINISTIC RETURN x + 1",
    (
        "CREATE PROCEDURE several(OUT n INT)\nBEGIN\n  -- it's a comment;;\n  /* another's */\n"
        "INSERT INTO `audit` VALUES (NULL, 'x'), (NULL, ';;');\n  SELECT COUNT(*) INTO n FROM parent;\nEND"
    ),
    (
        "CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01 00:00:00' COMMENT 'it''s'"
        " DO BEGIN INSERT INTO audit (what) VALUES ('n'); END"
    ),
    "CREATE EVENT paused ON SCHEDULE EVERY 2 HOUR STARTS '2020-01-01 00:00:00' DISABLE DO SET @x = 1",
    "CREATE DEFINER = 'nobody'@'nowhere' PROCEDURE foreign_definer() SELECT 1",
)


def description(server: Server, name: str) -> object:
    """All that a restore must bring back; None where there is no such database."""
    settings = server.rows(
        "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA"
        f" WHERE SCHEMA_NAME = '{name}'"
    )
    if not settings:
        return None
    found: dict[Any, Any] = {"settings": settings}
    tables = server.rows(
        f"SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES WHERE TABLE_SCHEMA = '{name}'"
    )
    with contextlib.closing(server.connect(name)) as connection, connection.cursor() as cursor:

        def ask(query: str) -> list[tuple[Any, ...]]:
            cursor.execute(query)
            return list(cursor.fetchall())

        for table, kind in sorted(tables):
            quoted = "`" + table.replace("`", "``") + "`"
            found[table, kind] = ask(f"SHOW CREATE TABLE {quoted}")
            history = " FOR SYSTEM_TIME ALL" if kind == "SYSTEM VERSIONED" else ""
            if kind != "SEQUENCE":
                found[table, "rows"] = sorted(ask(f"SELECT * FROM {quoted}{history}"), key=repr)
        found["checks"] = sorted(
            ask(f"SELECT * FROM information_schema.CHECK_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = '{name}'")
        )
        for kind, query in _PROGRAMS.items():
            for (program,) in sorted(ask(query.format(name))):
                rows = ask(f"SHOW CREATE {kind} `{program}`")
                # The last column of a trigger is when it was made.
                found[kind, program] = rows[0][:6] if kind == "TRIGGER" else rows[0]
                if kind == "TRIGGER":
                    found[kind, program] = found[kind, program][:2] + found[kind, program][3:]
        found["triggers"] = ask(
            "SELECT TRIGGER_NAME, EVENT_MANIPULATION, EVENT_OBJECT_TABLE, ACTION_ORDER, ACTION_STATEMENT,"
            f" ACTION_TIMING, DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = '{name}' ORDER BY 1"
        )
    return found


_PROGRAMS = {
    "PROCEDURE": "SELECT ROUTINE_NAME FROM information_schema.ROUTINES"
    " WHERE ROUTINE_SCHEMA = '{}' AND ROUTINE_TYPE = 'PROCEDURE'",
    "FUNCTION": "SELECT ROUTINE_NAME FROM information_schema.ROUTINES"
    " WHERE ROUTINE_SCHEMA = '{}' AND ROUTINE_TYPE = 'FUNCTION'",
    "PACKAGE": "SELECT ROUTINE_NAME FROM information_schema.ROUTINES"
    " WHERE ROUTINE_SCHEMA = '{}' AND ROUTINE_TYPE = 'PACKAGE'",
    "PACKAGE BODY": "SELECT ROUTINE_NAME FROM information_schema.ROUTINES"
    " WHERE ROUTINE_SCHEMA = '{}' AND ROUTINE_TYPE = 'PACKAGE BODY'",
    "TRIGGER": "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = '{}'",
    "EVENT": "SELECT EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = '{}'",
}
