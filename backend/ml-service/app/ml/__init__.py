"""The classifier: its data, its network, its files."""
