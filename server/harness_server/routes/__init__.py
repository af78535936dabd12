"""One module per resource, each ending in a `routes` list; `ENDPOINTS` are all that OpenAPI describes."""

from __future__ import annotations

from harness_server.endpoint import Endpoint
from harness_server.routes import (
    agents,
    audit,
    handoffs,
    logs,
    schedules,
    secrets,
    stats,
    system,
    tasks,
    tokens,
)

#: By the tag that groups them on the docs page.
ENDPOINTS: dict[str, list[Endpoint]] = {
    "tasks": [*tasks.routes, *logs.routes, *stats.routes],
    "agents": agents.routes,
    "schedules": schedules.routes,
    "handoffs": handoffs.routes,
    "secrets": secrets.routes,
    "system": system.routes,
    "access": [*tokens.routes, *audit.routes],
}
