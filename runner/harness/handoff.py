"""`HandoffManager`: what an agent remembers from run to run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.compression import Compressor, DigestCompressor, OutputDigest, encode_state
from harness.config import DEFAULT_MAX_STATE_BYTES
from harness.errors import ArtifactNotFoundError, HarnessError, InvalidInputError, StateRejectedError
from harness.models import HandoffArtifact, NewArtifact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from harness.ports import Store
    from harness.settings import Settings

#: A summary is a line for people; the rest is cut off, as `handoff.save` does inside the sandbox.
MAX_SUMMARY_CHARS = 2000


class HandoffManager:
    """Loads, saves and makes handoff artifacts.

    ``HandoffManager()`` uses the store that this process's environment names, opened on the first call that needs it.
    Safe for any number of concurrent calls.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        compressor: Compressor | None = None,
        max_state_bytes: int | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Take what it works with; does no I/O.

        Args:
            store: An open store, owned by the caller. None: the one shared by this process.
            compressor: Makes the state in `compress_context`. None: `DigestCompressor`.
            max_state_bytes: Bound on every state, as compact JSON in UTF-8. None: what the agent's own
                ``limits.max_state_bytes`` says, else the setting (64 KiB unless changed).
            settings: Beside a `store`; None: their defaults.
        """
        self._store = store
        self._compressor = compressor or DigestCompressor()
        self._max_state_bytes = max_state_bytes
        self._settings = settings

    async def load_artifact(self, agent_id: int) -> HandoffArtifact | None:
        """Return the newest artifact; None before the first run and after a clear."""
        store, _ = await self._resolve()
        return await store.newest_artifact(agent_id)

    async def save_artifact(self, agent_id: int, state: dict[str, Any], summary: str = "") -> HandoffArtifact:
        """Save a state as the agent's newest artifact.

        Args:
            agent_id: Whose state it is.
            state: A JSON object; what it holds is copied.
            summary: A line for people; cut to 2,000 characters.

        Returns:
            The artifact as stored: its `run_count` is the previous one's plus one.

        Raises:
            AgentNotFoundError: There is no such agent.
            StateRejectedError: The state is no JSON object, too deep or too large.
        """
        store, default_max_bytes = await self._resolve()
        max_bytes = await self._max_bytes_of(agent_id, store, default_max_bytes)
        copy = _checked_copy(state, max_bytes=max_bytes, what="state")
        return await store.save_artifact(agent_id, NewArtifact(state=copy, summary=_clean_summary(summary)))

    async def clear_artifact(self, agent_id: int) -> None:
        """Make the agent's next run a first run. The history stays; without an artifact this does nothing."""
        store, _ = await self._resolve()
        await store.clear_artifact(agent_id)

    async def compress_context(
        self, agent_id: int, raw_output: str, previous_state: dict[str, Any]
    ) -> dict[str, Any]:
        """Make a run's output into the state for the next run; nothing is saved.

        How is the compressor's business: see `harness.compression.DigestCompressor` for the default. Whatever it
        returns is checked, so the result is always a JSON object within the bound, and shares nothing with
        `previous_state`.

        Args:
            agent_id: Whose output it is.
            raw_output: The run's standard output.
            previous_state: The state the run began with; ``{}`` on a first run.

        Raises:
            InvalidInputError: `raw_output` is not text.
            AgentNotFoundError: There is no such agent, and its limit had to be looked up.
            StateRejectedError: The state is not acceptable; the message names the value or the line at fault. Or the
                compressor failed.
        """
        if not isinstance(raw_output, str):
            raise InvalidInputError(
                f"raw_output is {type(raw_output).__name__}; give text, decoded from UTF-8"
            )
        if not isinstance(previous_state, dict):
            raise StateRejectedError(
                f"previous_state is {type(previous_state).__name__}; give a dict, {{}} on a first run"
            )
        max_bytes = await self._bound_of(agent_id)
        compressing = self._compressor.compress(
            agent_id=agent_id, raw_output=raw_output, previous_state=previous_state, max_bytes=max_bytes
        )
        return await self._checked(compressing, max_bytes)

    async def compress_pieces(
        self,
        agent_id: int,
        pieces: AsyncIterator[str],
        previous_state: dict[str, Any],
        *,
        is_cut: bool = False,
    ) -> dict[str, Any]:
        """Make an output that comes in pieces into the state for the next run, as `compress_context` does.

        The default compressor needs the memory of one piece. Any other gets the whole output at once.

        Args:
            agent_id: Whose output it is.
            pieces: The run's standard output, in order.
            previous_state: The state the run began with.
            is_cut: The output goes on, beyond its cap: its last, half line is left out.

        Raises:
            StateRejectedError: As `compress_context`.
        """
        if type(self._compressor) is not DigestCompressor:
            output = "".join([piece async for piece in pieces])
            if is_cut:
                output = output[: output.rfind("\n") + 1]
            return await self.compress_context(agent_id, output, previous_state)
        max_bytes = await self._bound_of(agent_id)

        async def digest() -> dict[str, Any]:
            made = OutputDigest(previous_state, max_bytes)
            async for piece in pieces:
                await made.take(piece)
            return made.finish(is_cut=is_cut)

        return await self._checked(digest(), max_bytes)

    async def _checked(self, compressing: Awaitable[dict[str, Any]], max_bytes: int) -> dict[str, Any]:
        name = type(self._compressor).__name__
        try:
            state = await compressing
        except HarnessError:
            raise
        except Exception as error:  # somebody else's code: whatever it raises, the run must end with a reason
            raise StateRejectedError(f"{name} made no state: {type(error).__name__}: {error}") from error
        return _checked_copy(state, max_bytes=max_bytes, what=f"the state made by {name}")

    async def _bound_of(self, agent_id: int) -> int:
        if self._max_state_bytes is not None:
            return self._max_state_bytes
        return await self._max_bytes_of(agent_id, *await self._resolve())

    async def history(
        self, agent_id: int, limit: int = 100, before_version: int | None = None
    ) -> Sequence[HandoffArtifact]:
        """Return artifacts by falling version, clears included.

        Args:
            agent_id: Whose artifacts.
            limit: How many at most.
            before_version: Only lower versions; the last one of a page gives the next page.
        """
        if limit < 1:
            raise InvalidInputError(f"limit is {limit}; ask for at least 1")
        store, _ = await self._resolve()
        return await store.artifact_history(agent_id, limit=limit, before_version=before_version)

    async def rollback(self, agent_id: int, version: int) -> HandoffArtifact:
        """Save an old version's state as the newest artifact; nothing in the history changes.

        Raises:
            AgentNotFoundError: There is no such agent.
            ArtifactNotFoundError: It has no artifact of that version, or that version is a clear.
            StateRejectedError: The old state is larger than the bound that holds today.
        """
        store, _ = await self._resolve()
        await store.get_agent(agent_id)
        found = [
            artifact
            for artifact in await store.artifact_history(agent_id, limit=1, before_version=version + 1)
            if artifact.version == version
        ]
        if not found:
            raise ArtifactNotFoundError(f"agent {agent_id} has no handoff artifact of version {version}")
        if found[0].cleared:
            raise ArtifactNotFoundError(
                f"version {version} of agent {agent_id} is a clear and holds no state; clear the artifact instead"
            )
        return await self.save_artifact(agent_id, found[0].state, f"Rolled back to version {version}")

    async def _resolve(self) -> tuple[Store, int]:
        """Return the store, and the bound for agents that set none."""
        if self._store is not None:
            settings = self._settings
            return self._store, DEFAULT_MAX_STATE_BYTES if settings is None else settings.max_state_bytes
        # Only here, so that importing the manager pulls in no database driver.
        from harness.wiring import shared_runtime

        runtime = await shared_runtime()
        return runtime.store, runtime.settings.max_state_bytes

    async def _max_bytes_of(self, agent_id: int, store: Store, default: int) -> int:
        if self._max_state_bytes is not None:
            return self._max_state_bytes
        agent = await store.get_agent(agent_id)
        return agent.options.limits.max_state_bytes or default


def _checked_copy(state: object, *, max_bytes: int, what: str) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(encode_state(state, max_bytes=max_bytes, what=what))
    return copy


def _clean_summary(summary: str) -> str:
    return summary[:MAX_SUMMARY_CHARS].encode(errors="replace").decode()
