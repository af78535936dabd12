"""`SecretInfo`: what may be shown of a secret."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.models import Instant, Model
from harness.secrets.rules import NAME_PATTERN


class SecretInfo(Model):
    """What is known about a stored secret; its value is never shown."""

    #: What agents name it by.
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    #: When it was first stored.
    created_at: Instant
    #: When its value was last set.
    updated_at: Instant
