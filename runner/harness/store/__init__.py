"""Implementations of `harness.ports.Store`: `sqlite` is the embedded default, `mongo` what many hosts share.

Importing this package loads no driver. `documents` and `transitions` hold what both stores must do alike.
"""
