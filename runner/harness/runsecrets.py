"""`RunSecrets`: the secrets of one run, on their way in as environment and out as masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from harness.errors import SecretDamagedError, SecretKeyError, SecretNotFoundError
from harness.ports import OutputSink, OutputStream, SandboxResult, Store
from harness.secrets.masking import MaskedStream, Masker
from harness.settings import Settings
from harness.vault import SecretVault

#: Why a run can't have its secrets.
SECRETS_UNUSABLE = (SecretNotFoundError, SecretKeyError, SecretDamagedError)


class RunSecrets:
    """What an agent's config names, at the values they have as the run begins."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Take values by the environment variable that each is handed over in."""
        #: What the agent gets beside its own environment.
        self.environment: Mapping[str, str] = MappingProxyType(dict(environment or {}))
        self._masker = Masker(self.environment.values())

    @classmethod
    async def load(cls, store: Store, settings: Settings, names: Mapping[str, str]) -> RunSecrets:
        """Fetch and decrypt.

        Args:
            store: Where the secrets are.
            settings: Hold the keys.
            names: Environment variable to name of a secret.

        Raises:
            SecretNotFoundError: One is not stored.
            SecretKeyError: There is no key, or none that fits.
            SecretDamagedError: One can't be decrypted.
        """
        if not names:
            return NO_SECRETS
        values = await SecretVault(store, settings).reveal(names.values())
        return cls({variable: values[name] for variable, name in names.items()})

    def text(self, text: str) -> str:
        """Mask a text for people, which may have been cut to a bound."""
        return self._masker.text(text, is_cut=True)

    def result(self, result: SandboxResult) -> SandboxResult:
        """Mask all of a result that an agent can write into."""
        if not self._masker:
            return result
        return replace(
            result,
            error=None if result.error is None else self.text(result.error),
            state=self.state(result.state),
            summary=self.text(result.summary),
        )

    def state(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Mask a handoff state; it gets no larger."""
        if state is None or not self._masker:
            return state
        masked: dict[str, Any] = self._masker.json(state)
        return masked

    def sink(self, target: OutputSink) -> MaskingSink:
        """Return a sink that passes output on to `target`, masked."""
        return MaskingSink(self._masker, target)


#: Of the many runs that have none.
NO_SECRETS = RunSecrets()


class MaskingSink:
    """An `OutputSink` before another one; `finish` it when no more output comes.

    The end of a stream waits here as long as it may be the begin of a secret, and no other output ever does.
    """

    def __init__(self, masker: Masker, target: OutputSink) -> None:
        self._target = target
        self._streams: dict[OutputStream, MaskedStream] = {}
        if masker:
            self._streams = {"stdout": masker.stream(), "stderr": masker.stream()}

    def __call__(self, stream: OutputStream, data: bytes) -> None:
        """Take a piece of output."""
        if self._streams:
            data = self._streams[stream].feed(data)
        if data:
            self._target(stream, data)

    def finish(self) -> None:
        """Pass on what was held back."""
        for stream, masked in self._streams.items():
            if data := masked.finish():
                self._target(stream, data)
