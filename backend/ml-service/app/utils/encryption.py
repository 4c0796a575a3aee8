"""The key of the service's backups: `encryption.key` may be set by hand when the environment has lost it."""

from holdfast.manager import encryption

__all__ = ["encryption"]
