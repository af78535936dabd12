"""What these tests stand on: a Docker Engine that answers, with the sandbox image on it. Never skipped."""

from __future__ import annotations

from tests.sandboxes import lab, sandbox

__all__ = ["lab", "sandbox"]
