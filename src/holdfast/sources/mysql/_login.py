"""How a URL logs in to a MySQL or MariaDB server: for the driver, and for the programs that come with the server."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from holdfast.durable import explained, private_file
from holdfast.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import URL

_FILES = ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key", "ssl_cipher")
_VERIFY = ("ssl_verify_cert", "ssl_verify_server_cert")
_NAMES = ("ssl_check_hostname", "ssl_verify_identity")
_KNOWN = (*_FILES, *_VERIFY, *_NAMES, "ssl_mode", "ssl_disabled", "ssl")
_MODES = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")
_OFF = ("", "0", "false", "no", "off")
_PORT = 3306


def driver_options(url: URL) -> dict[str, Any]:
    """Arguments of ``pymysql.connect``. Options of the URL that only matter to the service, such as ``charset``,
    are passed over. Raises ConfigError for one that is about encryption and unknown."""
    options: dict[str, Any] = {
        "host": url.host or "localhost",
        "port": url.port or _PORT,
        "user": url.username or "",
        # As text it would be taken for Latin-1.
        "password": b"" if url.password is None else str(url.password).encode(),
    }
    if socket := _query(url).get("unix_socket"):
        options["unix_socket"] = socket
    mode = _tls_mode(url)
    if mode == "DISABLED":
        options["ssl_disabled"] = True
    elif mode != "PREFERRED":
        options["ssl"] = _tls_context(url, mode)
    return options


@contextmanager
def option_file(url: URL) -> Iterator[int]:
    """The descriptor of an option file that holds the password
    (https://dev.mysql.com/doc/refman/8.4/en/option-files.html). The file has no name, and is gone when it is closed.

    Raises ConfigError, StorageError.
    """
    query, mode = _query(url), _tls_mode(url)
    lines = {"user": url.username or ""}
    if url.password is not None:
        lines["password"] = str(url.password)
    if socket := query.get("unix_socket"):
        lines |= {"socket": socket, "protocol": "socket"}
    else:
        lines |= {"host": url.host or "localhost", "port": str(url.port or _PORT)}
        # Else "localhost" means a socket to these programs.
        lines |= {"protocol": "tcp"}
    if mode != "PREFERRED":
        # MySQL's programs know ssl-mode, MariaDB's the others; each passes over what is "loose" and unknown to it.
        lines["loose-ssl-mode"] = mode
        lines["loose-ssl"] = "0" if mode == "DISABLED" else "1"
        lines["loose-ssl-verify-server-cert"] = "1" if mode == "VERIFY_IDENTITY" else "0"
        lines |= {key.replace("_", "-"): query[key] for key in _FILES if query.get(key)}
    text = "[client]\n" + "".join(f"{key}={_quoted(value)}\n" for key, value in lines.items())
    with explained("cannot hand over a password"), private_file() as file:
        file.write(text.encode())
        file.flush()
        file.seek(0)
        yield file.fileno()


def _tls_mode(url: URL) -> str:
    """How much encryption is asked for, in the words of ``ssl_mode``."""
    query = _query(url)
    mode = query.get("ssl_mode", "").upper()
    unknown = [key for key in query if key.startswith(("ssl", "tls")) and key not in _KNOWN]
    if unknown or mode not in ("", *_MODES):
        raise ConfigError(
            f"{unknown[0] if unknown else 'ssl_mode'} in the URL of a MySQL database has no meaning here",
            hint=f"Known are {', '.join(_KNOWN)}; ssl_mode is one of {', '.join(_MODES)}.",
        )
    if mode:
        return mode
    if _switch(query, "ssl_disabled"):
        return "DISABLED"
    has_ca = "ssl_ca" in query or "ssl_capath" in query
    verify = next((on for key in _VERIFY if (on := _switch(query, key)) is not None), has_ca)
    names = next((on for key in _NAMES if (on := _switch(query, key)) is not None), verify)
    if names:
        return "VERIFY_IDENTITY"
    if verify:
        return "VERIFY_CA"
    return "REQUIRED" if _switch(query, "ssl") or any(key in query for key in _FILES) else "PREFERRED"


def _tls_context(url: URL, mode: str) -> ssl.SSLContext:
    query = _query(url)
    try:
        context = ssl.create_default_context(cafile=query.get("ssl_ca"), capath=query.get("ssl_capath"))
        # The certificates that servers make for themselves do not pass it.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", ssl.VerifyFlags(0))
        context.check_hostname = mode == "VERIFY_IDENTITY"
        context.verify_mode = ssl.CERT_REQUIRED if mode.startswith("VERIFY") else ssl.CERT_NONE
        if "ssl_cert" in query:
            context.load_cert_chain(query["ssl_cert"], keyfile=query.get("ssl_key"))
        if "ssl_cipher" in query:
            context.set_ciphers(query["ssl_cipher"])
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"ssl_… in the URL of a MySQL database cannot be used: {error}") from error
    return context


def _query(url: URL) -> dict[str, str]:
    return {
        key.replace("-", "_").lower(): value if isinstance(value, str) else value[-1]
        for key, value in url.query.items()
    }


def _switch(query: Mapping[str, str], key: str) -> bool | None:
    value = query.get(key)
    return None if value is None else value.lower() not in _OFF


def _quoted(value: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(char, char) for char in value) + '"'
