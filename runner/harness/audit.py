"""The audit log: who changed what, through which door, and how it ended."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.models import Instant, Model

#: Whose change it was where no token was asked for: somebody's on the server's machine.
LOCAL = "local"
#: A change by the command line, on the store itself.
CLI = "cli"


class AuditDraft(Model):
    """A change, or one that was refused for want of a scope, as it is written down."""

    #: The token that was shown; None: there was none.
    token_id: int | None = None
    #: The token's name, ``local`` or ``cli``.
    actor: Annotated[str, Field(max_length=100)]
    #: Where it came from: an address, or a user of the machine.
    peer: Annotated[str, Field(max_length=100)] = ""
    #: What was asked for, by the name that OpenAPI gives it.
    action: Annotated[str, Field(max_length=100)]
    #: What it was done to: a path of the API.
    target: Annotated[str, Field(max_length=300)] = ""
    #: What came to be by it, as a path.
    made: Annotated[str, Field(max_length=300)] | None = None
    #: As in the answer: below 300 it was done, 403 it was refused, from 500 on it may have been done.
    status: int
    #: Of the answer; the server's log has it too.
    request_id: Annotated[str, Field(max_length=100)] = ""


class AuditEntry(AuditDraft):
    """A line of the audit log."""

    #: Rises by one with each line.
    id: int
    at: Instant
