"""What is backed up. `base` has the protocols; each other module is one kind of source."""
