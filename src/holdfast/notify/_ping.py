"""A dead man's switch: a service that is told of each run, and raises the alarm when it hears nothing."""

from __future__ import annotations

import http.client
import ssl
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from holdfast.notify._delivery import TIMEOUT, Undelivered
from holdfast.version import __version__

_ANSWER = 1024
"""Bytes of the answer that are read."""


def ping(url: str, *, good: bool, context: ssl.SSLContext | None = None) -> None:
    """GETs `url` after a success, and ``url/fail`` after a failure, as healthchecks.io and its like have it
    (https://healthchecks.io/docs/http_api/). Raises Undelivered, which does not show the URL: it is secret."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(context=context or ssl.create_default_context()),
        HTTPDefaultErrorHandler(),
        _Redirects(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    request = Request(  # noqa: S310 - the settings take http and https alone, and the opener knows no other
        url if good else _failure(url), headers={"User-Agent": f"holdfast/{__version__}"}
    )
    try:
        with opener.open(request, timeout=TIMEOUT) as answer:
            answer.read(_ANSWER)
    except HTTPError as error:
        error.close()
        raise Undelivered(f"the dead man's switch answered {error.code}") from None
    except URLError as error:
        reason = error.reason
        told = reason.strerror if isinstance(reason, OSError) and reason.strerror else type(reason).__name__
        raise Undelivered(f"the dead man's switch cannot be reached: {told}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        told = getattr(error, "strerror", None) or type(error).__name__
        raise Undelivered(f"the dead man's switch cannot be reached: {told}") from None


def _failure(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/fail"))


class _Redirects(HTTPRedirectHandler):
    """Few, and never from https to http."""

    max_redirections = 3
    max_repeats = 2

    def redirect_request(
        self,
        req: Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise HTTPError(req.full_url, code, "redirected to where it may not go", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
