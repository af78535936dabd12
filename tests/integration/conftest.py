"""What these tests stand on: a Docker Engine that answers, with the sandbox image on it. Never skipped."""

from __future__ import annotations

from tests.sandboxes import lab, no_container_is_left, sandbox, sandbox_image

__all__ = ["lab", "no_container_is_left", "sandbox", "sandbox_image"]
