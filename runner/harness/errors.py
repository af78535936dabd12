"""Every error the product raises on purpose.

One root, `HarnessError`; each class has a stable `code` that logs, the CLI and the API show. Nothing here knows about
HTTP. A class's docstring says when it is raised; the message of an instance names the value at fault and the remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class HarnessError(Exception):
    """Root of all errors raised on purpose by Agent Harness."""

    #: Stable machine-readable name; never changes once released.
    code: ClassVar[str] = "harness_error"

    #: After how many seconds it may go well; None: doing it again is no remedy, as far as is known.
    retry_after_seconds: float | None = None

    def __init__(self, message: str) -> None:
        """Keep the sentence that a person will read.

        Args:
            message: What happened, the value at fault and what to do.
        """
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one value of an input."""

    #: Path of the value, such as ``config.limits.cpus``; empty when it is the whole.
    field: str
    message: str


class InvalidInputError(HarnessError, ValueError):
    """A value given by the caller is not acceptable."""

    code = "invalid_input"

    def __init__(self, message: str, *, problems: tuple[Problem, ...] = ()) -> None:
        """Keep the message, and what it says value by value where that is known."""
        super().__init__(message)
        self.problems = problems


class SettingsError(HarnessError):
    """A `HARNESS_*` setting is malformed."""

    code = "invalid_settings"


class AddressUnavailableError(HarnessError):
    """The server can't listen where it was told to."""

    code = "address_unavailable"


class SecretKeyError(SettingsError):
    """No key for secrets is set, or none that fits."""

    code = "secret_key_missing"


class StateRejectedError(InvalidInputError):
    """A handoff state is not a JSON object, is nested too deeply, or is larger than its bound."""

    code = "state_rejected"


class NotFoundError(HarnessError, LookupError):
    """Nothing is stored under the given id or name."""

    code = "not_found"


class AgentNotFoundError(NotFoundError):
    """No agent has that id or name."""

    code = "agent_not_found"


class TaskNotFoundError(NotFoundError):
    """No task has that id."""

    code = "task_not_found"


class ArtifactNotFoundError(NotFoundError):
    """The agent has no handoff artifact of that version."""

    code = "artifact_not_found"


class SecretNotFoundError(NotFoundError):
    """No secret has that name."""

    code = "secret_not_found"


class TokenNotFoundError(NotFoundError):
    """No token has that id."""

    code = "token_not_found"


class ProcessNotFoundError(NotFoundError):
    """No process has that id, or it has ended."""

    code = "process_not_found"


class ConflictError(HarnessError):
    """The request contradicts what is stored."""

    code = "conflict"


class AgentNameTakenError(ConflictError):
    """Another agent has that name."""

    code = "agent_name_taken"


class AgentBusyError(ConflictError):
    """The agent has an active task, and one at a time is allowed."""

    code = "agent_busy"


class VersionConflictError(ConflictError):
    """Somebody else changed the agent since it was read."""

    code = "version_conflict"


class DuplicateFireError(ConflictError):
    """A task for this fire of the schedule, or for this request, exists already."""

    code = "duplicate_fire"

    def __init__(self, message: str, *, task_id: int = 0) -> None:
        """Keep the message, and which task it is."""
        super().__init__(message)
        self.task_id = task_id


class IdempotencyKeyReusedError(ConflictError):
    """An idempotency key belongs to another request."""

    code = "idempotency_key_reused"


class AuthenticationError(HarnessError):
    """A request carries no token, or one that is not valid."""

    code = "unauthenticated"


class PermissionDeniedError(HarnessError):
    """The token's scope does not reach, or the request comes from where none may come from."""

    code = "permission_denied"


class RateLimitedError(HarnessError):
    """Too many requests in too short a time."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        """Keep the message, and when it is worth trying again."""
        super().__init__(message)
        self.retry_after_seconds: float = retry_after_seconds


class RequestTimeoutError(HarnessError):
    """A request's body did not come in time."""

    code = "request_timeout"


class DeadlineExceededError(HarnessError):
    """The server did not get done in time with what it was asked for; it may have taken effect."""

    code = "deadline_exceeded"


class BodyTooLargeError(HarnessError):
    """A request's body is larger than the server takes."""

    code = "body_too_large"


class UnsupportedMediaError(HarnessError):
    """A request's body is of a type or an encoding that the server does not take."""

    code = "unsupported_media_type"


class ServerUnavailableError(HarnessError):
    """The server that the client talks to does not answer, or not as one of ours."""

    code = "server_unavailable"


class LeaseLostError(HarnessError):
    """The claim on a task has expired or was taken over; its holder may write nothing more."""

    code = "lease_lost"


class StoreError(HarnessError):
    """The store could not do what was asked."""

    code = "store_error"


class StoreUnavailableError(StoreError):
    """The store does not answer."""

    code = "store_unavailable"


class StoreBusyError(StoreUnavailableError):
    """The store answers, but a lock was not released in time."""

    code = "store_busy"


class SchemaTooNewError(StoreError):
    """The store was written by a newer release."""

    code = "schema_too_new"


class SecretDamagedError(StoreError):
    """What is stored of a secret can't be decrypted."""

    code = "secret_damaged"


class SandboxError(HarnessError):
    """A sandbox could not be made, driven or removed."""

    code = "sandbox_error"


class EngineUnavailableError(SandboxError):
    """The Docker Engine does not answer."""

    code = "engine_unavailable"


class ImageMissingError(SandboxError):
    """The image of a sandbox is not on the engine."""

    code = "image_missing"


class ImageBuildError(SandboxError):
    """A sandbox image could not be built."""

    code = "image_build_failed"
