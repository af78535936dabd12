"""What an agent imports to talk to its next run: ``import handoff``.

* `context`: the state the previous run left (or what the caller passed), a dict. Also a global of the agent's script.
* `task`: agent_id, task_id, attempt, run_count and previous_outcome of this run, as attributes.
* `save`: hand a new state over.

This file is baked into the sandbox image and runs inside the sandbox: standard library only, as little of it as can be,
and nothing here is trusted by the harness, which checks again whatever arrives.
"""

import json
import os
import sys
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import SimpleNamespace
    from typing import Any
else:
    SimpleNamespace = type(sys.implementation)  # what `types` does, without the rest of it

#: State left by the previous run; an empty dict on the first one.
context: "dict[str, Any]" = {}
#: This run: agent_id, task_id, attempt, run_count, previous_outcome.
task = SimpleNamespace()

#: Summaries are cut to this many characters.
MAX_SUMMARY_CHARS = 2000

_lock = allocate_lock()
_pipe = -1
_owner_pid = -1
_max_state_bytes = 0


class HandoffError(ValueError):
    """The state can't be handed over; the message says why."""


def save(state: "dict[str, Any]", summary: str = "") -> None:
    """Make `state` the context of the next run, if this run ends well. The last call wins.

    Args:
        state: A dict that JSON can hold; its size as JSON is bounded (64 KiB unless the agent's config says otherwise).
        summary: A line for people, shown with the run; cut to 2,000 characters.

    Raises:
        HandoffError: The state was refused. Unless a later call succeeds, the run fails as ``state_rejected``.
    """
    if os.getpid() != _owner_pid:
        raise HandoffError("handoff.save works in the agent's main process only, not in one it forked")
    try:
        message = _encode(state, summary)
    except HandoffError as error:
        send(b"R", str(error).encode(errors="replace"))
        raise
    send(b"S", message)


def send(kind: bytes, payload: bytes) -> None:
    """Write one message to the supervisor: kind, length, payload. Internal."""
    with _lock:
        view = memoryview(kind + len(payload).to_bytes(4, "big") + payload)
        while view:
            view = view[os.write(_pipe, view) :]


def bind(pipe: int, max_state_bytes: int, new_context: "dict[str, Any]", new_task: "dict[str, Any]") -> None:
    """Fill the module in before the agent starts. Internal: called by the supervisor's child."""
    global context, task, _pipe, _owner_pid, _max_state_bytes
    _pipe, _owner_pid, _max_state_bytes = pipe, os.getpid(), max_state_bytes
    context, task = new_context, SimpleNamespace(**new_task)


def _encode(state: "dict[str, Any]", summary: str) -> bytes:
    if not isinstance(state, dict):
        raise HandoffError(f"state must be a dict, got {type(state).__name__}")
    try:
        text = json.dumps(state, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        encoded = text.encode()
    except RecursionError:
        raise HandoffError("state is nested too deeply, or contains itself") from None
    except UnicodeEncodeError as error:
        raise HandoffError(f"state holds a lone surrogate, which is no valid text: {error}") from None
    except (TypeError, ValueError) as error:
        raise HandoffError(f"state is not JSON: {error}") from None
    if len(encoded) > _max_state_bytes:
        raise HandoffError(
            f"state is {len(encoded):,} bytes of JSON, more than the limit of {_max_state_bytes:,} bytes; "
            "drop what the next run does not need"
        )
    line = str(summary)[:MAX_SUMMARY_CHARS].encode(errors="replace")
    return len(line).to_bytes(4, "big") + line + encoded
