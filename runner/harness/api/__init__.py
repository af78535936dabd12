"""What the service can do for whoever talks to it: one protocol, its values, and its implementation on a store.

`HarnessApi` is the contract. `LocalApi` fulfils it with a store at hand; the server's routes call that one.
`harness.client.HarnessClient` fulfils it over HTTP. One suite of tests runs on both.
"""

from __future__ import annotations

from harness.api.contract import HarnessApi
from harness.api.local import LocalApi

__all__ = ["HarnessApi", "LocalApi"]
