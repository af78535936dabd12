"""Agent Harness: runs autonomous agents around the clock, each run in a throwaway Docker container.

What is listed in `__all__` is the library's public face; everything else may change. A name is imported when it is
first used, so that ``import harness`` costs next to nothing and loads no driver, no Docker SDK and no web server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.compression import Compressor
    from harness.config import AgentConfig
    from harness.errors import HarnessError
    from harness.executor import AgentExecutor
    from harness.handoff import HandoffManager
    from harness.models import (
        Agent,
        AgentDraft,
        ExecutionResult,
        HandoffArtifact,
        Reason,
        ResourceLimits,
        Task,
        TaskStatus,
    )
    from harness.resources import ResourceManager
    from harness.scheduler import TaskScheduler
    from harness.settings import Settings
    from harness.wiring import Runtime, open_runtime

__all__ = [
    "Agent",
    "AgentConfig",
    "AgentDraft",
    "AgentExecutor",
    "Compressor",
    "ExecutionResult",
    "HandoffArtifact",
    "HandoffManager",
    "HarnessError",
    "Reason",
    "ResourceLimits",
    "ResourceManager",
    "Runtime",
    "Settings",
    "Task",
    "TaskScheduler",
    "TaskStatus",
    "open_runtime",
]

#: Where each public name lives.
_HOMES = {
    "compression": ("Compressor",),
    "config": ("AgentConfig",),
    "errors": ("HarnessError",),
    "executor": ("AgentExecutor",),
    "handoff": ("HandoffManager",),
    "models": (
        *("Agent", "AgentDraft", "ExecutionResult", "HandoffArtifact", "Reason", "ResourceLimits"),
        *("Task", "TaskStatus"),
    ),
    "resources": ("ResourceManager",),
    "scheduler": ("TaskScheduler",),
    "settings": ("Settings",),
    "wiring": ("Runtime", "open_runtime"),
}


def __getattr__(name: str) -> object:
    # PEP 562
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"harness.{home}"), name)
            return value
    raise AttributeError(f"module 'harness' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
