"""Use cases, one verb a file. Each takes an `Installation` and says what happens through events."""
