"""What may stand in `agent.config`: schedule, limits, environment, image.

An agent's config is stored as the plain dict its owner wrote; `AgentConfig` is the check of that dict and the typed
view of it. Unknown keys are refused, so that a misspelt limit is an error and not a missing limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from harness.cron import parse_cron
from harness.egress import PROXY_ENVIRONMENT
from harness.egress.policy import MAX_RULES, BadPlaceError, parse_rule
from harness.errors import InvalidInputError, Problem
from harness.secrets.rules import NAME_PATTERN
from harness.zones import load_zone

MIB = 1024 * 1024

#: Bound on a handoff state where neither the agent nor the settings say otherwise, as compact JSON in UTF-8.
DEFAULT_MAX_STATE_BYTES = 64 * 1024

#: Longest interval of a schedule: ten years.
MAX_INTERVAL_MINUTES = 10 * 365 * 24 * 60

#: Bounds on the instants of a schedule: from where time zones are well known to where nothing needs to fire any more.
MIN_INSTANT = datetime(1970, 1, 1, tzinfo=UTC)
MAX_INSTANT = datetime(3000, 1, 1, tzinfo=UTC)

#: Most secrets that one agent names.
MAX_SECRETS = 100

#: Bounds on what is kept: a hundred years, and more than any store holds.
MAX_DAYS = 36_500
MAX_KEPT = 1_000_000_000

#: A time in days, parts of one included; 0: for ever.
Days = Annotated[float, Field(ge=0, le=MAX_DAYS)]

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class _Section(BaseModel):
    # Agents' environments hold secrets, and pydantic's own messages quote what they refuse.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def _parse_instant(value: object) -> object:
    # Configs are JSON, so an instant comes as text; pydantic's own reading would take bare numbers and dates as well.
    if not isinstance(value, str):
        return value
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("this is no instant; write it like 2026-01-31T09:00:00Z") from None


def _as_whole_utc_second(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("an instant needs an offset; write it like 2026-01-31T09:00:00Z or …+01:00")
    if not MIN_INSTANT <= value <= MAX_INSTANT:
        raise ValueError(f"an instant lies between the years {MIN_INSTANT.year} and {MAX_INSTANT.year}")
    return value.astimezone(UTC).replace(microsecond=0)


_ScheduleInstant = Annotated[datetime, BeforeValidator(_parse_instant), AfterValidator(_as_whole_utc_second)]


class ScheduleConfig(_Section):
    """When an agent runs, and what happens to fires that cannot run on time."""

    #: ``interval`` uses `interval_minutes` or `interval_seconds`, ``cron`` uses `cron`.
    type: Literal["interval", "cron"]
    #: From one fire to the next.
    interval_minutes: Annotated[int, Field(ge=1, le=MAX_INTERVAL_MINUTES)] | None = None
    #: The same in seconds; one of the two.
    interval_seconds: Annotated[int, Field(ge=1, le=MAX_INTERVAL_MINUTES * 60)] | None = None
    #: Five-field cron expression, or a name such as ``@daily``; see `harness.cron`.
    cron: str | None = None
    #: IANA name of the zone whose local time `cron` means. An interval is elapsed time and has none.
    timezone: str = "UTC"
    #: Each fire is put off by its own share of this, fixed by agent id and fire time, and never past the next fire.
    jitter_seconds: Annotated[float, Field(ge=0, le=86400)] = 0
    #: First instant at which it may fire; fractions of a second are cut off.
    start_at: _ScheduleInstant | None = None
    #: Last instant at which it may fire, itself included; fractions of a second are cut off.
    end_at: _ScheduleInstant | None = None
    #: Whether it fires at all.
    enabled: bool = True

    #: What to do with a fire while a run of the agent is active: record it as skipped, let one fire wait, run it beside
    #: the others, or cancel the active run.
    overlap: Literal["skip", "queue_one", "allow", "cancel_running"] = "skip"
    #: Active runs of the agent at most, under ``allow``.
    max_overlap: Annotated[int, Field(ge=2, le=100)] = 5
    #: Lateness up to which a fire runs as if on time. Later than that it was missed, and `catch_up` decides.
    misfire_grace_seconds: Annotated[float, Field(ge=0, le=7 * 86400)] = 60
    #: Which missed fires still run: the newest one, the newest `catch_up_limit` ones, or none. The others are recorded
    #: as skipped.
    catch_up: Literal["latest", "all", "none"] = "latest"
    #: Most missed fires that still run, under ``all``.
    catch_up_limit: Annotated[int, Field(ge=1, le=1000)] = 10

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, cron: str | None) -> str | None:
        if cron is not None:
            parse_cron(cron)
        return cron

    @field_validator("timezone")
    @classmethod
    def _is_known_zone(cls, name: str) -> str:
        load_zone(name)
        return name

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> Self:
        intervals = (self.interval_minutes, self.interval_seconds)
        if self.type == "interval":
            if intervals == (None, None):
                raise ValueError("an interval schedule needs interval_minutes or interval_seconds")
            if None not in intervals:
                raise ValueError("interval_minutes and interval_seconds exclude each other; leave one out")
            if self.cron is not None:
                raise ValueError("an interval schedule takes no cron; leave it out or set type to cron")
            if self.timezone != "UTC":
                raise ValueError("an interval is elapsed time and has no timezone; leave it out or use cron")
        else:
            if self.cron is None:
                raise ValueError("a cron schedule needs cron")
            if intervals != (None, None):
                raise ValueError("a cron schedule takes no interval; leave it out or set type to interval")
        if self.start_at and self.end_at and self.end_at < self.start_at:
            raise ValueError("end_at is before start_at, so nothing would ever fire")
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
            "exit_nonzero",
            "timeout",
            "out_of_memory",
            "lost",
            "result_lost",
            "sandbox_error",
            "state_rejected",
        ],
        ...,
    ] = ("exit_nonzero", "timeout", "out_of_memory", "lost", "sandbox_error")

    def max_retries(self, default: int) -> int:
        """Return how often a task of the agent is retried at most; `default` where the agent does not say."""
        return default if self.max_attempts is None else self.max_attempts

    @field_validator("on", mode="before")
    @classmethod
    def _lists_come_from_json(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class RetentionConfig(_Section):
    """How much of its history an agent keeps; what is left out takes the setting, and 0 keeps everything."""

    #: Ended tasks, with their logs, are deleted this many days after their end.
    task_days: Days | None = None
    #: Of its tasks the newest this many are kept.
    max_tasks: Annotated[int, Field(ge=0, le=MAX_KEPT)] | None = None
    #: Logs are deleted this many days after the end of their task, and at the latest with it.
    log_days: Days | None = None
    #: Handoff artifacts are deleted this many days after they were saved. The newest stays.
    artifact_days: Days | None = None
    #: Of its handoff artifacts the newest this many are kept.
    max_artifacts: Annotated[int, Field(ge=0, le=MAX_KEPT)] | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return the part of an agent's config that is about this, whatever the rest of it says.

        Raises:
            InvalidInputError: It is malformed, as something that an older release accepted may be.
        """
        try:
            return cls.model_validate(config.get("retention", {}))
        except ValidationError as error:
            raise InvalidInputError(f"config.retention is not valid: {describe_problems(error)}") from error


class AgentConfig(_Section):
    """The typed view of `Agent.config`."""

    #: When it runs by itself; None: never.
    schedule: ScheduleConfig | None = None
    #: What a run may use.
    limits: LimitsConfig = LimitsConfig()
    #: How often a failed run is tried again.
    retry: RetryConfig = RetryConfig()
    #: How long what its runs leave is kept.
    retention: RetentionConfig = RetentionConfig()
    #: Tasks of agents with a higher number are started first.
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    #: Environment variables of the agent. A Python agent gets them inside the job frame, so `docker inspect` does not
    #: show them; an agent with its own `command` gets them as container environment, where it does.
    env: dict[str, str] = Field(default_factory=dict)
    #: Environment variables whose values are stored secrets, by the names of those. They reach a Python agent as `env`
    #: does, and are masked in all that its runs show. Not for an agent with its own `command`.
    secrets: Annotated[
        dict[str, Annotated[str, Field(pattern=NAME_PATTERN)]], Field(max_length=MAX_SECRETS)
    ] = Field(default_factory=dict)
    #: Another image than the product's own. With a `command` any image will do; without, it must derive from ours.
    image: Annotated[str, Field(min_length=1)] | None = None
    #: Program to run instead of Python code: it reads the context as JSON on stdin and is judged by its exit code.
    command: Annotated[list[str], Field(min_length=1)] | None = None
    #: ``none``: loopback only. ``open``: the engine's default bridge.
    network: Literal["none", "open"] = "none"
    #: Places that it may reach nevertheless, as ``host:port`` or ``*.host:port``; see `harness.egress`.
    egress: Annotated[list[str], Field(max_length=MAX_RULES)] = Field(default_factory=list)

    @field_validator("env")
    @classmethod
    def _names_are_portable(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not _ENV_NAME.match(name):
                raise ValueError(f"{name!r} is no name for an environment variable (letters, digits and _)")
            if "\0" in value:
                raise ValueError(f"the value of {name} holds a NUL byte")
        return env

    @field_validator("secrets")
    @classmethod
    def _secrets_have_portable_names(cls, secrets: dict[str, str]) -> dict[str, str]:
        for variable in secrets:
            if not _ENV_NAME.match(variable):
                raise ValueError(
                    f"{variable!r} is no name for an environment variable (letters, digits and _)"
                )
        return secrets

    @field_validator("command")
    @classmethod
    def _arguments_hold_no_nul(cls, command: list[str] | None) -> list[str] | None:
        for argument in command or ():
            if "\0" in argument:
                raise ValueError("an argument holds a NUL byte, which no program can be given")
        return command

    @field_validator("egress")
    @classmethod
    def _rules_name_places(cls, egress: list[str]) -> list[str]:
        for rule in egress:
            try:
                parse_rule(rule)
            except BadPlaceError as error:
                raise ValueError(f"{rule[:80]!r} is no rule of egress: {error}") from None
        return egress

    @model_validator(mode="after")
    def _egress_is_all_there_is(self) -> Self:
        if self.egress and self.network == "open":
            raise ValueError(
                "egress lists all that may be reached, and network: open is everything; leave one of them out"
            )
        return self

    @property
    def environment(self) -> dict[str, str]:
        """Its variables, with those by which programs find the way out where there is one; its own come first."""
        if not self.egress:
            return self.env
        # In either spelling: which of the two a program prefers differs.
        own = {name.lower() for name in (*self.env, *self.secrets)}
        proxy = {name: value for name, value in PROXY_ENVIRONMENT.items() if name.lower() not in own}
        return {**proxy, **self.env}

    @model_validator(mode="after")
    def _secrets_stay_secret(self) -> Self:
        if self.secrets and self.command is not None:
            raise ValueError(
                "secrets can't be handed to an agent with its own command: its environment shows in docker inspect; "
                "leave secrets out, or write the agent in Python"
            )
        if both := self.secrets.keys() & self.env.keys():
            raise ValueError(f"{min(both)} is in env and in secrets; leave it out of one of them")
        return self

    @property
    def max_active(self) -> int:
        """How many tasks of the agent may be active at once."""
        schedule = self.schedule
        return schedule.max_overlap if schedule is not None and schedule.overlap == "allow" else 1

    @classmethod
    def parse(cls, config: dict[str, Any]) -> AgentConfig:
        """Check a config dict.

        Raises:
            InvalidInputError: One line per problem, each with the path of the value at fault.
        """
        try:
            return cls.model_validate(config)
        except ValidationError as error:
            raise InvalidInputError(
                f"config is not valid: {describe_problems(error)}", problems=list_problems(error)
            ) from error


#: Longest integer that messages quote.
_MAX_QUOTED_BITS = 256

#: Whatever stands under these names is quoted by no message. ``value`` is a secret's, in the API.
_QUIET = frozenset({"env", "secrets", "value"})


def describe_problems(error: ValidationError) -> str:
    """Render pydantic's findings as one readable line: ``limits.cpus: Input should be … (got -1)``.

    Quotes single values only, and none under ``env`` or ``secrets``: what an agent's environment holds is secret.
    """
    return "; ".join(f"{problem.field or 'value'}: {problem.message}" for problem in list_problems(error))


def list_problems(error: ValidationError) -> tuple[Problem, ...]:
    """Return pydantic's findings, value by value, as `describe_problems` says them."""
    problems: list[Problem] = []
    for problem in error.errors(include_url=False):
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, InvalidInputError) and cause.problems:
            # A validator that checks a document of its own kind, as an agent's does with its config.
            inside = (
                ".".join(map(str, (*problem["loc"], found.field))).strip(".") for found in cause.problems
            )
            problems.extend(map(Problem, inside, (found.message for found in cause.problems)))
            continue
        # Under a name that is not known here may stand anything, a password too.
        quiet = problem["type"] in ("missing", "extra_forbidden") or not _QUIET.isdisjoint(problem["loc"])
        got = "" if quiet else quote_value(problem["input"])
        path = ".".join(str(part) for part in problem["loc"])
        problems.append(Problem(path, f"{problem['msg'].removeprefix('Value error, ')}{got}"))
    return tuple(problems)


def quote_value(value: object) -> str:
    """Render a refused value for the end of a message; nothing for a list or a mapping, whose path says more."""
    if not isinstance(value, str | int | float | None):
        return ""
    if isinstance(value, int) and value.bit_length() > _MAX_QUOTED_BITS:
        # CPython refuses to write some of them as decimal digits at all.
        return f" (got an integer of {value.bit_length():,} bits)"
    text = repr(value[:80]) if isinstance(value, str) else f"{value}"
    return f" (got {text if len(text) <= 80 else text[:77] + '...'})"
