"""The Python client of a server: `HarnessClient` does over HTTP what `harness.api.HarnessApi` says.

Needs nothing of the core but its models, its errors and the values of the API.
"""

from __future__ import annotations

from harness.client.client import HarnessClient

__all__ = ["HarnessClient"]
