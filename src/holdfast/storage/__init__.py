"""Bytes under names. `base` has the protocol; each other module is one kind of storage."""
