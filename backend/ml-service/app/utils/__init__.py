"""The service's side of Holdfast."""
