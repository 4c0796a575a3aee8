"""Events as log records, under the logger ``holdfast``."""

from __future__ import annotations

import logging

from holdfast.events import (
    Event,
    Noted,
    Progressed,
    RunFailed,
    RunFinished,
    RunStarted,
    StageStarted,
    Warned,
)
from holdfast.text import harmless

logger = logging.getLogger("holdfast")


def log(event: Event) -> None:
    """Subscribes `logging` to a job."""
    match event:
        case Progressed(bytes_done, entries_done):
            logger.debug("%d bytes, %d entries", bytes_done, entries_done)
        case StageStarted(stage, subject):
            logger.debug("%s %s", stage, harmless(subject))
        case Warned(message):
            logger.warning("%s", harmless(message))
        case Noted(message):
            logger.info("%s", harmless(message))
        case RunStarted(verb, subject):
            logger.info("%s %s: started", verb, harmless(subject))
        case RunFinished(verb, subject):
            logger.info("%s %s: done", verb, harmless(subject))
        case RunFailed(verb, subject, error):
            logger.error("%s %s: %s", verb, harmless(subject), harmless(error))
