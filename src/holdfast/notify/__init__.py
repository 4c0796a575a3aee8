"""Tells people what the scheduler did: by mail, through Apprise, and to a dead man's switch.

Nothing here ever fails a backup. What could not be delivered waits in an outbox, and is tried again.
"""

from __future__ import annotations

from holdfast.notify._channels import Channel, channels_of, faults
from holdfast.notify._messages import Message, Scrubber
from holdfast.notify._notifier import Notifier
from holdfast.notify._test import Result, send_test

__all__ = ["Channel", "Message", "Notifier", "Result", "Scrubber", "channels_of", "faults", "send_test"]
