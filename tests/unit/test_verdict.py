from __future__ import annotations

from typing import Any

import pytest

from harness.models import Reason
from harness.sandbox.frames import EXIT_RUNNER_GONE, Report
from harness.sandbox.verdict import Ending, judge

MAX_STATE_BYTES = 256


def report(exit_code: int = 0, **fields: Any) -> Report:
    defaults: dict[str, Any] = {"peak_memory_bytes": 5_000_000, "cpu_seconds": 0.1, "wall_seconds": 0.2}
    return Report(exit_code=exit_code, **(defaults | fields))


OOM = Reason.OUT_OF_MEMORY
TIMED_OUT = (Reason.TIMEOUT, "ran longer than its limit of 1 s")


@pytest.mark.parametrize(
    ("ending", "reason", "exit_code", "words"),
    [
        # The supervisor's report
        pytest.param(Ending(report=report()), Reason.COMPLETED, 0, None, id="normal end"),
        pytest.param(Ending(report=report(3)), Reason.EXIT_NONZERO, 3, "code 3", id="exit code"),
        pytest.param(
            Ending(report=report(1, error="ValueError: no")),
            Reason.EXIT_NONZERO,
            1,
            "exited with code 1: ValueError: no",
            id="exception",
        ),
        pytest.param(Ending(report=report(-11)), Reason.EXIT_NONZERO, 139, "SIGSEGV", id="segfault"),
        pytest.param(
            Ending(report=report(-50)), Reason.EXIT_NONZERO, 178, "signal 50", id="real-time signal"
        ),
        pytest.param(
            Ending(report=report(-9)), Reason.EXIT_NONZERO, 137, "SIGKILL", id="137 alone proves nothing"
        ),
        pytest.param(
            Ending(report=report(-9, oom_kills=1)), OOM, 137, "killed the agent", id="agent out of memory"
        ),
        pytest.param(
            Ending(report=report(1, oom_kills=1)), OOM, 1, "a process of the agent", id="child out of memory"
        ),
        pytest.param(
            Ending(report=report(0, oom_kills=1)),
            Reason.COMPLETED,
            0,
            None,
            id="survived a child's out of memory",
        ),
        pytest.param(
            Ending(report=report(refused="NaN")), Reason.STATE_REJECTED, 0, "NaN", id="refused in the sandbox"
        ),
        pytest.param(
            Ending(report=report(refused="NaN", exit_code=1, error="HandoffError: NaN")),
            Reason.STATE_REJECTED,
            1,
            "NaN",
            id="refused, and the agent did not catch it",
        ),
        pytest.param(
            Ending(report=report(setup_error="no space")),
            Reason.SANDBOX_ERROR,
            0,
            "no space",
            id="could not be set up",
        ),
        pytest.param(
            Ending(report=report(-15, stopped_by="signal")),
            Reason.SANDBOX_ERROR,
            143,
            "somebody outside",
            id="stopped from outside",
        ),
        pytest.param(
            Ending(report=report(-9, stopped_by="backstop")),
            Reason.TIMEOUT,
            137,
            "its runner did not",
            id="ended by the backstop",
        ),
        # What the runner did itself comes first, whatever else is seen.
        pytest.param(
            Ending(report=report(-15, stopped_by="runner"), stopped=TIMED_OUT),
            Reason.TIMEOUT,
            143,
            "limit of 1 s",
            id="timeout",
        ),
        pytest.param(
            Ending(report=report(-9, oom_kills=1), stopped=TIMED_OUT),
            Reason.TIMEOUT,
            137,
            "limit of 1 s",
            id="timeout with an out of memory on the way",
        ),
        pytest.param(
            Ending(
                stopped=(Reason.CANCELLED, "cancelled by ann"), engine_exit_code=137, engine_oom_killed=True
            ),
            Reason.CANCELLED,
            137,
            "by ann",
            id="cancelled and killed",
        ),
        pytest.param(
            Ending(stopped=TIMED_OUT, engine_error="gone"),
            Reason.TIMEOUT,
            -1,
            "limit",
            id="timeout, engine gone",
        ),
        # No report
        pytest.param(
            Ending(engine_exit_code=137), Reason.RESULT_LOST, 137, "no result frame", id="killed from outside"
        ),
        pytest.param(
            Ending(engine_exit_code=0, bad_frame="checksum"),
            Reason.RESULT_LOST,
            0,
            "checksum",
            id="bad frame",
        ),
        pytest.param(
            Ending(engine_exit_code=137, engine_oom_killed=True),
            OOM,
            137,
            "first process",
            id="supervisor killed",
        ),
        pytest.param(
            Ending(engine_exit_code=0, engine_oom_killed=True),
            Reason.RESULT_LOST,
            0,
            "no result frame",
            id="the engine's flag alone proves nothing",
        ),
        pytest.param(
            Ending(engine_exit_code=EXIT_RUNNER_GONE),
            Reason.SANDBOX_ERROR,
            113,
            "was cut",
            id="connection cut",
        ),
        pytest.param(
            Ending(engine_error="refused"), Reason.SANDBOX_ERROR, -1, "refused", id="engine does not answer"
        ),
        # Programs that do not report
        pytest.param(
            Ending(supervised=False, engine_exit_code=0),
            Reason.COMPLETED,
            0,
            None,
            id="plain program, success",
        ),
        pytest.param(
            Ending(supervised=False, engine_exit_code=3),
            Reason.EXIT_NONZERO,
            3,
            "code 3",
            id="plain, failure",
        ),
        pytest.param(
            Ending(supervised=False, engine_exit_code=139),
            Reason.EXIT_NONZERO,
            139,
            "SIGSEGV",
            id="plain, signal",
        ),
        pytest.param(
            Ending(supervised=False, engine_exit_code=EXIT_RUNNER_GONE),
            Reason.EXIT_NONZERO,
            113,
            "code 113",
            id="plain, its own 113",
        ),
        pytest.param(
            Ending(supervised=False, engine_exit_code=137, engine_oom_killed=True),
            OOM,
            137,
            "for memory",
            id="plain, out of memory",
        ),
        pytest.param(
            Ending(supervised=False, engine_error="refused"),
            Reason.SANDBOX_ERROR,
            -1,
            "refused",
            id="plain, engine gone",
        ),
    ],
)
def test_each_ending_has_one_reason(
    ending: Ending, reason: Reason, exit_code: int, words: str | None
) -> None:
    result = judge(ending, max_state_bytes=MAX_STATE_BYTES)

    assert (result.reason, result.exit_code) == (reason, exit_code)
    if words is None:
        assert result.error is None
    else:
        assert result.error is not None
        assert words in result.error
    assert result.state is None


def test_a_good_state_comes_with_its_summary() -> None:
    ending = Ending(report=report(saved=True, state_text=b'{"n": [1, null]}', summary="one"))

    result = judge(ending, max_state_bytes=MAX_STATE_BYTES)

    assert (result.reason, result.state, result.summary) == (Reason.COMPLETED, {"n": [1, None]}, "one")


@pytest.mark.parametrize(
    "state_text",
    [
        b"",
        b"null",
        b"[1]",
        b'"text"',
        b"{",
        b'{"n": NaN}',
        b'{"n": Infinity}',
        b'{"n": "\xff"}',
        b'{"n": "\\ud800"}',
        b'{"n":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"n":"' + b"x" * MAX_STATE_BYTES + b'"}',
        b'{"n":' + b"9" * 250 + b"e999}",
    ],
)
def test_a_state_that_got_past_the_sandbox_is_checked_again(state_text: bytes) -> None:
    ending = Ending(report=report(saved=True, state_text=state_text, summary="all fine"))

    result = judge(ending, max_state_bytes=MAX_STATE_BYTES)

    assert result.reason is Reason.STATE_REJECTED
    assert result.state is None
    assert result.summary == ""
    assert result.error is not None
    assert len(result.error) < 1000


def test_a_failed_run_hands_nothing_over_even_if_it_saved() -> None:
    ending = Ending(report=report(1, saved=True, state_text=b'{"n":1}', summary="all fine"))

    result = judge(ending, max_state_bytes=MAX_STATE_BYTES)

    assert (result.reason, result.state, result.summary) == (Reason.EXIT_NONZERO, None, "")


def test_what_the_run_used_is_reported_whatever_the_reason() -> None:
    ending = Ending(report=report(-9, oom_kills=1))

    result = judge(ending, max_state_bytes=MAX_STATE_BYTES)

    assert (result.peak_memory_bytes, result.cpu_seconds, result.wall_seconds) == (5_000_000, 0.1, 0.2)


def test_without_a_report_the_runners_own_clock_tells_the_wall_time() -> None:
    result = judge(Ending(engine_exit_code=137, wall_seconds=2.5), max_state_bytes=MAX_STATE_BYTES)

    assert (result.wall_seconds, result.cpu_seconds, result.peak_memory_bytes) == (2.5, None, None)
