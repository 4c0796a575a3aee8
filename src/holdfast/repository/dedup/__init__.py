"""The deduplicating repository: chunks of content, each stored once."""
