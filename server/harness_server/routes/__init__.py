"""One module per resource, each ending in a `routes` list."""
