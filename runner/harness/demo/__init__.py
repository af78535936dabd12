"""``python -m harness.demo``: an agent audits its sandbox's own Python standard library, a batch per container."""
