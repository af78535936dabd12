"""What may stand in `agent.config`: schedule, limits, environment, image.

An agent's config is stored as the plain dict its owner wrote; `AgentConfig` is the check of that dict and the typed
view of it. Unknown keys are refused, so that a misspelt limit is an error and not a missing limit.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.errors import InvalidInputError

MIB = 1024 * 1024

#: Bound on a handoff state where neither the agent nor the settings say otherwise, as compact JSON in UTF-8.
DEFAULT_MAX_STATE_BYTES = 64 * 1024

#: Longest interval of a schedule: ten years.
MAX_INTERVAL_MINUTES = 10 * 365 * 24 * 60

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class _Section(BaseModel):
    # Agents' environments hold secrets, and pydantic's own messages quote what they refuse.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class ScheduleConfig(_Section):
    """When an agent runs; the two forms of the API description."""

    #: ``interval`` uses `interval_minutes`, ``cron`` uses `cron`.
    type: Literal["interval", "cron"]
    interval_minutes: Annotated[int, Field(ge=1, le=MAX_INTERVAL_MINUTES)] | None = None
    #: Five-field cron expression.
    cron: str | None = None
    enabled: bool = True

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> Self:
        if self.type == "interval" and self.interval_minutes is None:
            raise ValueError("an interval schedule needs interval_minutes")
        if self.type == "cron" and self.cron is None:
            raise ValueError("a cron schedule needs cron")
        return self


class LimitsConfig(_Section):
    """Limits an agent asks for; what is left out takes the executor's value, and there is no 'unlimited'."""

    #: Wall time from the job being handed over, in seconds.
    timeout_seconds: Annotated[float, Field(gt=0, le=7 * 86400)] | None = None
    #: Time between SIGTERM and SIGKILL, in seconds.
    grace_seconds: Annotated[float, Field(ge=0, le=300)] | None = None
    #: Memory of all processes, page cache and /tmp together, in MiB. Swap is never added. Docker's own minimum is 6 MiB.
    max_memory_mb: Annotated[int, Field(ge=16, le=1024 * 1024)] | None = None
    #: CPU cores, for example 0.5.
    cpus: Annotated[float, Field(ge=0.01, le=1024)] | None = None
    #: Processes and threads alive at once (the kernel's pids controller counts threads).
    max_processes: Annotated[int, Field(ge=8, le=32768)] | None = None
    #: Size of the writable /tmp, in MiB; it is memory and counts towards `max_memory_mb`.
    max_tmp_mb: Annotated[int, Field(ge=1, le=1024 * 1024)] | None = None
    #: Output kept per run, stdout and stderr together, in bytes; the rest is dropped and the run marked as truncated.
    max_output_bytes: Annotated[int, Field(ge=1024, le=256 * MIB)] | None = None
    #: Size of the handoff state as JSON, in bytes.
    max_state_bytes: Annotated[int, Field(ge=256, le=4 * MIB)] | None = None


class RetryConfig(_Section):
    """When a failed run is tried again, by itself; each retry is another attempt of the same task."""

    #: How often at most; None: the scheduler's `retry_max_attempts`.
    max_attempts: Annotated[int, Field(ge=0, le=100)] | None = None
    #: Wait before the first retry, in seconds; each further wait is twice as long.
    delay_seconds: Annotated[float, Field(ge=0, le=86400)] = 2.0
    #: No wait is longer than this, in seconds.
    max_delay_seconds: Annotated[float, Field(ge=0, le=7 * 86400)] = 3600.0
    #: What ends of an attempt are retried.
    on: tuple[
        Literal[
            "exit_nonzero", "timeout", "out_of_memory", "lost", "result_lost", "sandbox_error", "state_rejected"
        ],
        ...,
    ] = ("exit_nonzero", "timeout", "out_of_memory", "lost", "sandbox_error")

    @field_validator("on", mode="before")
    @classmethod
    def _lists_come_from_json(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class AgentConfig(_Section):
    """The typed view of `Agent.config`."""

    schedule: ScheduleConfig | None = None
    limits: LimitsConfig = LimitsConfig()
    retry: RetryConfig = RetryConfig()
    #: Tasks of agents with a higher number are started first.
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    #: Environment variables of the agent. A Python agent gets them inside the job frame, so `docker inspect` does not
    #: show them; an agent with its own `command` gets them as container environment, where it does.
    env: dict[str, str] = Field(default_factory=dict)
    #: Another image than the product's own. With a `command` any image will do; without, it must derive from ours.
    image: Annotated[str, Field(min_length=1)] | None = None
    #: Program to run instead of Python code: it reads the context as JSON on stdin and is judged by its exit code.
    command: Annotated[list[str], Field(min_length=1)] | None = None
    #: ``none``: loopback only. ``open``: the engine's default bridge.
    network: Literal["none", "open"] = "none"

    @field_validator("env")
    @classmethod
    def _names_are_portable(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not _ENV_NAME.match(name):
                raise ValueError(f"{name!r} is no name for an environment variable (letters, digits and _)")
            if "\0" in value:
                raise ValueError(f"the value of {name} holds a NUL byte")
        return env

    @field_validator("command")
    @classmethod
    def _arguments_hold_no_nul(cls, command: list[str] | None) -> list[str] | None:
        for argument in command or ():
            if "\0" in argument:
                raise ValueError("an argument holds a NUL byte, which no program can be given")
        return command

    @classmethod
    def parse(cls, config: dict[str, Any]) -> AgentConfig:
        """Check a config dict.

        Raises:
            InvalidInputError: One line per problem, each with the path of the value at fault.
        """
        try:
            return cls.model_validate(config)
        except ValidationError as error:
            raise InvalidInputError(f"config is not valid: {describe_problems(error)}") from error


def describe_problems(error: ValidationError) -> str:
    """Render pydantic's findings as one readable line: ``limits.cpus: Input should be … (got -1)``.

    Quotes single values only, and none under ``env``: what an agent's environment holds is secret.
    """
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        path = ".".join(str(part) for part in problem["loc"]) or "value"
        # Under a name that is not known here may stand anything, a password too.
        quiet = problem["type"] in ("missing", "extra_forbidden") or "env" in problem["loc"]
        got = "" if quiet else quote_value(problem["input"])
        lines.append(f"{path}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(lines)


def quote_value(value: object) -> str:
    """Render a refused value for the end of a message; nothing for a list or a mapping, whose path says more."""
    if not isinstance(value, str | int | float | None):
        return ""
    text = repr(value[:80]) if isinstance(value, str) else f"{value}"
    return f" (got {text if len(text) <= 80 else text[:77] + '...'})"
