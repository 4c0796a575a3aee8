"""Whether the models in a backup belong to the rows in its databases."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from holdfast.events import ignore
from holdfast.sources.base import Source


class ModelWatch:
    """Compares the models before the first database is read with those after the last model was.

    Only what a directory shows of them is compared (size, times, inode), so it costs two listings; a database that
    waited for its turn, or a model that was retrained after it was read, shows.
    """

    coherent: bool | None
    """None until both were read, and where a backup does not hold both."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """`sources`: all that the backup holds, in its order."""
        self.coherent = None
        self._databases = [source for source in sources if source.component == "database"]
        self._models = [source for source in sources if source.component == "models"]
        self._seen: bytes | None = None

    def before(self, source: Source) -> None:
        """To be called before a source is read."""
        if self._models and self._databases and source is self._databases[0]:
            self._seen = self._look()

    def after(self, source: Source) -> None:
        """To be called when it has been read."""
        if self._seen is not None and source is self._models[-1]:
            self.coherent = self._look() == self._seen

    def _look(self) -> bytes:
        digest = hashlib.blake2b()
        for source in self._models:
            for item in source.scan(ignore):
                digest.update(repr(item.entry._replace(racy=False)).encode("utf-8", "surrogateescape"))
        return digest.digest()
