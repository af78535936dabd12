"""Implementations of `harness.ports.Store`: `sqlite` is the embedded default, `mongo` what many hosts share.

Importing this package loads no driver. `documents`, `transitions` and `slots` hold what both stores must do alike.
"""
