"""Asks the service for predictions at a steady rate until SIGTERM or SIGINT, and says how many it got."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx

from app.main import app
from app.ml.task import draw


@asynccontextmanager
async def connect(url: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service at `url`, or of one that runs inside this process."""
    if url is not None:
        async with httpx.AsyncClient(base_url=url) as client:
            yield client
        return
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield client


async def run(url: str | None, rate: float, seed: int) -> None:
    """Raises httpx.HTTPError at the first request that the service does not answer."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    features, _ = draw(1000, seed)
    answered, last_id = 0, 0
    async with connect(url) as client:
        due = loop.time()
        for readings in itertools.cycle(features.tolist()):
            if stop.is_set():
                break
            response = await client.post("/predict", json={"features": readings})
            last_id = response.raise_for_status().json()["id"]
            answered += 1
            if answered == 1:  # a line to wait for: from here on rows are being written
                print(f"writing {rate:g} predictions a second to {url or 'this process'}", flush=True)
            due = max(due + 1 / rate, loop.time())  # after a stall the rate holds again, without a burst
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), due - loop.time())
    print(f"answered {answered}, last id {last_id}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="the service, say http://127.0.0.1:8000 (default: one in this process)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (default 20)")
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.rate > 0:
        parser.error("--rate must be positive")
    asyncio.run(run(arguments.url, arguments.rate, arguments.seed))


if __name__ == "__main__":
    main()
