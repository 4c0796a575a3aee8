"""Numbers for Prometheus: derived from the history and from the backups that there are, whenever they are asked for.

So they survive a restart of the scheduler, and the expiry of backups.
"""

from __future__ import annotations

from holdfast.metrics._derive import BUCKETS, Numbers
from holdfast.metrics._exposition import Metrics, MetricsServer, after_run, write_textfile

__all__ = ["BUCKETS", "Metrics", "MetricsServer", "Numbers", "after_run", "write_textfile"]
