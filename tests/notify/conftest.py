"""What the tests of notifications share: certificates, a clock, and a notifier with everything it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conformance.trees import Clock
from holdfast.config import Settings, load_settings
from holdfast.events import Event, Warned
from holdfast.notify import Notifier
from holdfast.state import LocalState
from notify.servers import HOST, Certificates, make_certificates, release


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    """Ports that a test kept free are free for others after it."""
    yield
    release()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@dataclass
class Post:
    """A notifier, and what belongs to it."""

    notifier: Notifier
    settings: Settings
    state: LocalState
    clock: Clock
    events: list[Event] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]

    @property
    def outbox(self) -> Path:
        return self.state.service / "outbox"

    @property
    def waiting(self) -> list[Path]:
        """Files of what could not be delivered yet."""
        if not self.outbox.exists():
            return []
        return sorted(path for path in self.outbox.glob("2*.json"))


MakePost = Callable[..., Post]


@pytest.fixture
def post(tmp_path: Path, certificates: Certificates) -> MakePost:
    """Makes a notifier: ``post(SMTP_PORT="2525")``. Each one made knows the same state, as after a restart."""
    root = tmp_path / "service"
    root.mkdir()
    clock = Clock()

    def make(*, check: Callable[[], None] = lambda: None, trusting: bool = True, **environ: str) -> Post:
        environ = {"SMTP_SERVER": HOST, "NOTIFICATION_EMAIL": "admin@example.com"} | environ
        settings = load_settings(root, {name: value for name, value in environ.items() if value})
        state = LocalState.locate(
            {"XDG_STATE_HOME": str(tmp_path / "state")}, root=root, backup_dir=settings.backup_dir
        )
        events: list[Event] = []
        notifier = Notifier(
            settings,
            state,
            clock,
            emit=events.append,
            check=check,
            context=certificates.trusting if trusting else None,
        )
        return Post(notifier, settings, state, clock, events)

    return make
