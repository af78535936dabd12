"""From everything known about an ended container to the one reason why it ended. Pure.

The order of the questions is the rule: what we ourselves stopped comes first (it was written down before the kill),
then what the supervisor saw from inside, and only without its report what the engine says, because the engine's
OOMKilled flag is unreliable both ways (moby #38352, #18510).
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from harness.errors import InvalidInputError
from harness.jsontext import decode_document
from harness.models import Reason
from harness.ports import SandboxResult
from harness.sandbox.frames import EXIT_RUNNER_GONE, Report

_SIGKILL_EXIT = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Ending:
    """What the runner saw of a container's end."""

    #: Reason and sentence of our own stop, if there was one.
    stopped: tuple[Reason, str] | None = None
    report: Report | None = None
    #: Why there is no valid report, when a frame began.
    bad_frame: str | None = None
    #: Whether the program reports at all; any image with a command does not.
    supervised: bool = True
    #: Exit code and OOMKilled as the engine gives them; None when it was not asked or did not answer.
    engine_exit_code: int | None = None
    engine_oom_killed: bool = False
    #: Why the engine could not tell.
    engine_error: str | None = None
    wall_seconds: float | None = None


def judge(ending: Ending, *, max_state_bytes: int) -> SandboxResult:
    """Find the reason, the exit code and the sentence for an ended run."""
    report = ending.report
    if report is None:
        reason, exit_code, error = _judge_from_outside(ending)
        return SandboxResult(reason, exit_code, error, wall_seconds=ending.wall_seconds)
    exit_code = 128 - report.exit_code if report.exit_code < 0 else report.exit_code
    reason, error, state = _judge_report(ending, report, max_state_bytes)
    return SandboxResult(
        reason,
        exit_code,
        error,
        state=state,
        summary=report.summary if reason is Reason.COMPLETED else "",
        peak_memory_bytes=report.peak_memory_bytes,
        cpu_seconds=report.cpu_seconds,
        wall_seconds=report.wall_seconds,
    )


def _judge_report(
    ending: Ending, report: Report, max_state_bytes: int
) -> tuple[Reason, str | None, dict[str, object] | None]:
    if ending.stopped is not None:
        return *ending.stopped, None
    if report.stopped_by == "backstop":
        return (
            Reason.TIMEOUT,
            "the supervisor ended the run: its runner did not, long after the time limit",
            None,
        )
    if report.stopped_by == "signal":
        return (
            Reason.SANDBOX_ERROR,
            "the engine, or somebody outside the harness, stopped the container",
            None,
        )
    if report.setup_error is not None:
        return Reason.SANDBOX_ERROR, report.setup_error, None
    if report.exit_code != 0 and report.oom_kills:
        return Reason.OUT_OF_MEMORY, _oom_sentence(report), None
    if report.refused is not None:
        return Reason.STATE_REJECTED, f"the state was refused: {report.refused}", None
    if report.exit_code != 0:
        return Reason.EXIT_NONZERO, _exit_sentence(report.exit_code, report.error), None
    if report.state_text is None:
        return Reason.COMPLETED, None, None
    try:
        return (
            Reason.COMPLETED,
            None,
            decode_document(report.state_text, what="state", max_bytes=max_state_bytes),
        )
    except InvalidInputError as problem:
        return Reason.STATE_REJECTED, f"the state was refused: {problem.message}", None


def _judge_from_outside(ending: Ending) -> tuple[Reason, int, str | None]:
    code = ending.engine_exit_code
    exit_code = -1 if code is None else code
    if ending.stopped is not None:
        reason, error = ending.stopped
        return reason, exit_code, error
    if code is None:
        return (
            Reason.SANDBOX_ERROR,
            -1,
            f"the engine can't tell how the container ended: {ending.engine_error}",
        )
    if code == EXIT_RUNNER_GONE and ending.supervised:
        return Reason.SANDBOX_ERROR, code, "the connection to the container was cut during the run"
    if ending.engine_oom_killed and code != 0:
        return Reason.OUT_OF_MEMORY, code, "the kernel killed the container's first process for memory"
    if ending.supervised:
        what = ending.bad_frame or "no result frame"
        return (
            Reason.RESULT_LOST,
            code,
            f"the container ended with code {code} and left no valid result: {what}",
        )
    if code != 0:
        return Reason.EXIT_NONZERO, code, _exit_sentence(128 - code if code > 128 else code, None)
    return Reason.COMPLETED, 0, None


def _oom_sentence(report: Report) -> str:
    who = "the agent" if report.exit_code == -signal.SIGKILL else "a process of the agent"
    return f"the kernel killed {who} for memory; raise limits.max_memory_mb or use less"


def _exit_sentence(exit_code: int, error: str | None) -> str:
    if exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
        return f"killed by {name}"
    return f"exited with code {exit_code}" + (f": {error}" if error else "")
