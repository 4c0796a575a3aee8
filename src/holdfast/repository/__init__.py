"""Where backups live. `base` has the protocols; `archive` is the contract's tar.gz format."""
