"""The Docker implementation of `harness.ports.Sandbox`. Only files of this package import ``docker``."""
