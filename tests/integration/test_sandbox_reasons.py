"""Each way in which a run can end, provoked on the real engine, is told apart from all others."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from typing import Any, cast

import psutil
import pytest
from docker import APIClient
from tests.sandboxes import Lab, wait_until

from harness.config import MIB
from harness.errors import ImageMissingError, SandboxError
from harness.models import Reason
from harness.output import OutputRecorder
from harness.ports import SandboxJob, Store
from harness.sandbox import session as session_module
from harness.sandbox.engine import EngineRefusedError
from harness.sandbox.frames import RESULT_MAGIC
from harness.sandbox.session import DockerSession
from harness.testing import FakeClock

#: Eats memory until the kernel steps in.
EAT = "hoard = []\nwhile True: hoard.append(b'x' * (1 << 20))"


# The agent ends by itself


@pytest.mark.parametrize(
    ("code", "reason", "exit_code", "error"),
    [
        ("print('hi')", Reason.COMPLETED, 0, None),
        ("", Reason.COMPLETED, 0, None),
        ("import sys; sys.exit()", Reason.COMPLETED, 0, None),
        ("import sys; sys.exit(3)", Reason.EXIT_NONZERO, 3, "exited with code 3"),
        ("import sys; sys.exit(-1)", Reason.EXIT_NONZERO, 255, "exited with code 255"),
        ("import sys; sys.exit('no luck')", Reason.EXIT_NONZERO, 1, "exited with code 1: no luck"),
        ("raise SystemExit(['odd'])", Reason.EXIT_NONZERO, 1, "exited with code 1: ['odd']"),
        ("1 / 0", Reason.EXIT_NONZERO, 1, "exited with code 1: ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", Reason.EXIT_NONZERO, 1, "exited with code 1: KeyboardInterrupt"),
        ("raise ValueError('a\\nb')", Reason.EXIT_NONZERO, 1, "exited with code 1: ValueError: a\nb"),
        ("def", Reason.EXIT_NONZERO, 1, "exited with code 1: SyntaxError: invalid syntax"),
        ("input()", Reason.EXIT_NONZERO, 1, "exited with code 1: EOFError: EOF when reading a line"),
        ("import os; os._exit(7)", Reason.EXIT_NONZERO, 7, "exited with code 7"),
        ("import os; os._exit(113)", Reason.EXIT_NONZERO, 113, "exited with code 113"),
        ("import ctypes; ctypes.string_at(0)", Reason.EXIT_NONZERO, 139, "killed by SIGSEGV"),
        ("import os; os.abort()", Reason.EXIT_NONZERO, 134, "killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", Reason.EXIT_NONZERO, 137, "killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 15)", Reason.EXIT_NONZERO, 143, "killed by SIGTERM"),
    ],
)
async def test_an_agent_that_ends_by_itself(
    lab: Lab, code: str, reason: Reason, exit_code: int, error: str | None
) -> None:
    ran = await lab.run(code)

    assert (ran.reason, ran.result.exit_code, ran.result.error) == (reason, exit_code, error)
    assert ran.stops == []


async def test_a_traceback_shows_the_agents_frames_only_and_its_source(lab: Lab) -> None:
    ran = await lab.run(
        "import helper\nhelper.fail()\n",
        files={
            "main.py": "import helper\ntry:\n    helper.fail()\nexcept KeyError as error:\n    raise ValueError('worse') from error\n",
            "helper.py": "def fail():\n    {}['missing']\n",
        },
    )
    text = ran.stderr.decode()

    assert ran.error == "exited with code 1: ValueError: worse"
    assert 'File "/tmp/agent/main.py", line 3, in <module>' in text
    assert 'File "/tmp/agent/helper.py", line 2, in fail' in text
    assert "    {}['missing']" in text
    assert text.rstrip().endswith("ValueError: worse")
    assert "supervisor" not in text
    assert "/opt/harness" not in text


async def test_a_text_given_to_sys_exit_goes_to_stderr(lab: Lab) -> None:
    ran = await lab.run("import sys; print('said', end=''); sys.exit('no luck')")

    assert (ran.stdout, ran.stderr) == (b"said", b"no luck\n")


async def test_exceptions_at_exit_are_shown_and_change_nothing_as_in_any_program(lab: Lab) -> None:
    ran = await lab.run("import atexit\natexit.register(lambda: 1 / 0)\natexit.register(print, 'last words')")

    assert ran.reason is Reason.COMPLETED
    assert ran.stdout == b"last words\n"
    assert b"ZeroDivisionError" in ran.stderr


async def test_threads_are_waited_for_after_the_main_program(lab: Lab) -> None:
    ran = await lab.run("""
import threading, time
def work():
    time.sleep(0.3)
    print("worked")
threading.Thread(target=work).start()
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
print("main ends")
""")

    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"main ends\nworked\n")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_multiprocessing_works_inside_an_agent(lab: Lab, method: str) -> None:
    ran = await lab.run(f"""
import multiprocessing
def square(n):
    return n * n
if __name__ == "__main__":
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        print(pool.map(square, range(5)))
""")

    assert (ran.result.error, ran.stderr) == (None, b"")
    assert ran.stdout == b"[0, 1, 4, 9, 16]\n"


async def test_an_agent_finds_its_files_its_arguments_and_its_environment(lab: Lab) -> None:
    files = {
        "app/run.py": """
import os, sys, json
from tools import text
from tools.deep.numbers import ONE
import handoff
print(json.dumps({
    "file": __file__, "argv": sys.argv, "name": __name__, "cwd": os.getcwd(), "imported": [text.HELLO, ONE],
    "env": {name: os.environ.get(name) for name in ("GREETING", "EMPTY", "HOME", "LANG")}, "context": context,
    "same": context == handoff.context, "task": vars(handoff.task), "stdin": sys.stdin.read(),
}))
""",
        "app/tools/__init__.py": "",
        "app/tools/text.py": "HELLO = 'grüß Gott'\n",
        "app/tools/deep/numbers.py": "ONE = 1\n",
    }

    ran = await lab.run(
        files=files,
        entrypoint="app/run.py",
        context={"n": [1, None, "é"]},
        env={"GREETING": "grüß = Gott\n", "EMPTY": ""},
    )

    assert ran.result.error is None, ran.stderr
    assert json.loads(ran.stdout) == {
        "file": "/tmp/agent/app/run.py",
        "argv": ["/tmp/agent/app/run.py"],
        "name": "__main__",
        "cwd": "/tmp/agent",
        "imported": ["grüß Gott", 1],
        "env": {"GREETING": "grüß = Gott\n", "EMPTY": "", "HOME": "/tmp", "LANG": "C.UTF-8"},
        "context": {"n": [1, None, "é"]},
        "same": True,
        "task": {"agent_id": 1, "task_id": 1, "attempt": 1, "run_count": 0, "previous_outcome": None},
        "stdin": "",
    }


async def test_four_megabytes_of_code_run(lab: Lab) -> None:
    code = "total = 0\n" + "total += 1  # padding\n" * (4 * MIB // 22 - 10) + "print(total)\n"

    ran = await lab.run(code, memory_bytes=512 * MIB)

    assert ran.result.error is None
    assert ran.stdout == f"{4 * MIB // 22 - 10}\n".encode()


async def test_an_agent_that_does_not_fit_into_tmp_is_told_so(lab: Lab) -> None:
    ran = await lab.run(files={"main.py": "print('never')", "data.txt": "x" * 2 * MIB}, tmp_bytes=MIB)

    assert ran.reason is Reason.SANDBOX_ERROR
    assert "the agent's files could not be written" in ran.error
    assert "No space left on device" in ran.error
    assert ran.stdout == b""


async def test_output_is_bytes_and_needs_to_be_no_text(lab: Lab) -> None:
    everything = bytes(range(256)) * 3

    ran = await lab.run("import os\nfor stream in (1, 2): os.write(stream, bytes(range(256)) * 3)")

    assert (ran.stdout, ran.stderr) == (everything, everything)


async def test_text_that_cannot_be_encoded_is_escaped(lab: Lab) -> None:
    ran = await lab.run("print('\\udcff é')")

    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, "\\udcff é\n".encode())


# What an agent may do to its surroundings


async def test_non_blocking_standard_streams_do_not_hurt_the_report(lab: Lab) -> None:
    ran = await lab.run("""
import fcntl, os
for fd in (0, 1, 2):
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
written = 0
try:
    while written < 5_000_000:
        written += os.write(1, b"x" * 4096)
except BlockingIOError:
    pass
import handoff
handoff.save({"written": written})
""")

    assert ran.result.error is None
    assert ran.result.state == {"written": len(ran.stdout)}


async def test_an_agent_may_close_all_its_descriptors(lab: Lab) -> None:
    ran = await lab.run("import os\nprint('before')\nos.closerange(0, 256)")

    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"before\n")


async def test_an_agent_that_closed_everything_can_still_fail(lab: Lab) -> None:
    ran = await lab.run("import os\nos.closerange(0, 256)\n1 / 0")

    assert (ran.reason, ran.result.exit_code) == (Reason.EXIT_NONZERO, 1)


async def test_descendants_that_hold_stdout_are_ended_and_delay_nothing(lab: Lab) -> None:
    ran = await lab.run("""
import os, signal, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            print("daemon", flush=True)
            time.sleep(3600)
        os._exit(0)
time.sleep(0.3)
""")

    assert ran.reason is Reason.COMPLETED
    assert ran.stdout == b"daemon\n" * 5
    assert (ran.result.wall_seconds or 0) < 20


async def test_zombies_and_orphans_are_reaped_while_the_agent_runs(lab: Lab) -> None:
    # 200 orphans one after the other, under a limit of 64: they must not pile up.
    ran = await lab.run("""
import os
for _ in range(200):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
for _ in range(20):
    if os.fork() == 0:
        os._exit(0)
print("still here")
""")

    assert (ran.result.error, ran.stdout) == (None, b"still here\n")


@pytest.mark.parametrize(
    "number", ["SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGCHLD"]
)
async def test_an_agent_cannot_end_its_supervisor(lab: Lab, number: str) -> None:
    ran = await lab.run(f"""
import os, signal, time
try:
    os.kill(1, signal.{number})
except PermissionError:
    pass
time.sleep(0.1)
print("still here")
""")

    assert (ran.result.error, ran.stdout) == (None, b"still here\n")


async def test_an_agent_cannot_pass_for_somebody_outside_who_stops_it(lab: Lab) -> None:
    ran = await lab.run("""
import ctypes, signal, time
# siginfo_t: number, errno, code, padding, sender; sigqueue(3) lets its caller say who that is.
SI_QUEUE = -1
for code in (0, 0x80, SI_QUEUE):
    said = (ctypes.c_int32 * 32)(signal.SIGTERM, 0, code, 0, 0, 0)
    number = {"x86_64": 129, "aarch64": 138}[__import__("os").uname().machine]
    print(ctypes.CDLL(None).syscall(number, 1, signal.SIGTERM, said))
time.sleep(0.1)
print("still here")
""")

    # The kernel refuses codes that only it may give.
    assert (ran.result.error, ran.stdout) == (None, b"-1\n-1\n0\nstill here\n")


# The wall time


async def test_a_timeout_is_recorded_before_the_agent_is_asked_to_end(lab: Lab) -> None:
    ran = await lab.run(
        """
import signal, sys, time
def end(*_):
    print("cleaned up")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("started")
time.sleep(3600)
""",
        timeout_seconds=0.5,
        grace_seconds=20,
    )

    assert ran.reason is Reason.TIMEOUT
    assert ran.result.exit_code == 0
    assert ran.stdout == b"started\ncleaned up\n"
    assert ran.stops == [(Reason.TIMEOUT, ran.error)]
    assert ran.error == "ran longer than its limit of 0.5 s"
    assert 0.3 < (ran.result.wall_seconds or 0) < 15


@pytest.mark.parametrize(
    "stubborn",
    [
        pytest.param("signal.signal(signal.SIGTERM, signal.SIG_IGN)", id="ignores SIGTERM"),
        pytest.param("os.kill(os.getpid(), signal.SIGSTOP)", id="stopped itself"),
        pytest.param("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))", id="blocks all signals"),
    ],
)
async def test_after_the_grace_an_agent_is_killed(lab: Lab, stubborn: str) -> None:
    ran = await lab.run(
        f"import os, signal, time\nprint('started', flush=True)\n{stubborn}\nwhile True: time.sleep(1)",
        timeout_seconds=0.5,
        grace_seconds=0.3,
    )

    assert (ran.reason, ran.result.exit_code) == (Reason.TIMEOUT, 137)
    assert ran.stdout == b"started\n"
    assert ran.result.cpu_seconds is not None, "the supervisor reported"


async def test_without_a_grace_the_supervisor_still_reports(lab: Lab) -> None:
    # The kill may find an agent that SIGTERM has ended already; several, to meet both.
    runs = await asyncio.gather(
        *(
            lab.run("import time; time.sleep(3600)", timeout_seconds=0.3, grace_seconds=0, cpus=0.5)
            for _ in range(8)
        )
    )

    assert {ran.reason for ran in runs} == {Reason.TIMEOUT}
    assert {ran.result.exit_code for ran in runs} <= {137, 143}
    assert all(ran.result.cpu_seconds is not None for ran in runs)


async def test_a_stop_from_outside_the_session_has_its_own_reason(lab: Lab) -> None:
    async def cancel(session: DockerSession) -> None:
        await session.stop(Reason.CANCELLED, "cancelled by ann")
        await session.stop(Reason.LOST, "too late")

    ran = await lab.run("import time; print('started'); time.sleep(3600)", during=cancel)

    assert (ran.reason, ran.error) == (Reason.CANCELLED, "cancelled by ann")
    assert ran.stops == [(Reason.CANCELLED, "cancelled by ann")]


async def test_a_reason_that_cannot_be_recorded_does_not_keep_the_agent_alive(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "RECORD_TIMEOUT_SECONDS", 0.2)

    async def hang(reason: Reason, message: str) -> None:
        await asyncio.Event().wait()

    job = SandboxJob(context={}, task={}, files={"main.py": "import time; time.sleep(3600)"})
    async with lab.sandbox.open(lab.spec(timeout_seconds=0.3)) as session:
        result = await session.run(job, sink=lambda stream, data: None, before_stop=hang)

    assert result.reason is Reason.TIMEOUT


# Memory and processes


async def test_an_agent_out_of_memory(lab: Lab) -> None:
    ran = await lab.run(EAT)

    assert (ran.reason, ran.result.exit_code) == (Reason.OUT_OF_MEMORY, 137)
    assert "killed the agent for memory" in ran.error
    assert "limits.max_memory_mb" in ran.error
    assert (ran.result.peak_memory_bytes or 0) > 50 * MIB


async def test_a_grandchild_out_of_memory_that_the_agent_does_not_survive(lab: Lab) -> None:
    ran = await lab.run(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {EAT!r}], check=True)"
    )

    assert (ran.reason, ran.result.exit_code) == (Reason.OUT_OF_MEMORY, 1)
    assert "a process of the agent" in ran.error


async def test_a_grandchild_out_of_memory_that_the_agent_survives(lab: Lab) -> None:
    ran = await lab.run(
        f"import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', {EAT!r}]).returncode)"
    )

    assert (ran.reason, ran.result.exit_code, ran.stdout) == (Reason.COMPLETED, 0, b"-9\n")


async def test_files_in_tmp_and_shm_count_as_memory(lab: Lab) -> None:
    ran = await lab.run(
        "with open('/tmp/fill', 'wb') as file:\n    while True: file.write(b'x' * (1 << 20))",
        tmp_bytes=256 * MIB,
    )

    assert ran.reason is Reason.OUT_OF_MEMORY


async def test_a_fork_bomb_stays_within_its_limit_and_ends_at_its_time(lab: Lab) -> None:
    seen: list[int] = []

    async def watch(session: DockerSession) -> None:
        for _ in range(2):
            stats = await lab.engine.call(APIClient.stats, session.container_id, stream=False, one_shot=True)
            seen.append(stats["pids_stats"].get("current", 0))

    ran = await lab.run(
        """
import os
print("started", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
        max_processes=32,
        timeout_seconds=3,
        grace_seconds=0.5,
        during=watch,
    )

    assert ran.reason is Reason.TIMEOUT
    assert 8 < max(seen) <= 32
    assert ran.result.cpu_seconds is not None, "the supervisor had the last word"


async def test_a_thread_bomb_stays_within_its_limit(lab: Lab) -> None:
    ran = await lab.run(
        """
import threading
stop, count = threading.Event(), 0
try:
    while True:
        threading.Thread(target=stop.wait).start()
        count += 1
except RuntimeError as error:
    print(count, error)
stop.set()
""",
        max_processes=32,
    )

    assert ran.result.error is None
    count, _, message = ran.stdout.decode().partition(" ")
    assert 20 < int(count) <= 31
    assert message == "can't start new thread\n"


@pytest.mark.timeout(180)
async def test_a_flood_of_output_is_drained_and_costs_no_memory(lab: Lab) -> None:
    """200 MiB on stdout, and some on stderr, into a recorder that keeps 1 MiB."""
    output = OutputRecorder(cast("Store", None), FakeClock(), task_id=1, fence=1, max_bytes=MIB)
    code = """
import os
block = b"flood " * 16384
written = 0
while written < 200 << 20:
    written += os.write(1, block)
os.write(2, b"and the end")
"""
    job = SandboxJob(context={}, task={}, files={"main.py": code})
    me = psutil.Process()
    before = me.memory_info().rss
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, me.memory_info().rss)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    async with lab.sandbox.open(lab.spec(timeout_seconds=150)) as session:
        result = await session.run(job, sink=output, before_stop=_ignore)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)

    assert result.reason is Reason.COMPLETED
    assert output.truncated
    assert 200 * MIB <= output.total_bytes < 201 * MIB
    assert output.text("stdout").encode() == (b"flood " * 200_000)[:MIB]
    assert output.text("stderr") == ""
    assert peak - before < 40 * MIB


# Frames that are not what they seem


def result_frame(nonce: str, state: dict[str, Any]) -> bytes:
    header = {
        "exit_code": 0,
        "saved": True,
        "peak_memory_bytes": 1,
        "cpu_seconds": 0,
        "wall_seconds": 0,
    }
    head, body = json.dumps(header).encode(), json.dumps(state).encode()
    payload = len(head).to_bytes(4, "big") + head + bytes(4) + body
    digest = hashlib.sha256(payload).digest()
    return RESULT_MAGIC + nonce.encode() + len(payload).to_bytes(4, "big") + digest + payload


def print_bytes(data: bytes, stream: int = 1) -> str:
    return f"import os\nos.write({stream}, {data!r})\n"


async def test_a_forged_result_is_output_like_any_other(lab: Lab) -> None:
    forged = result_frame("f" * 32, {"forged": True})

    ran = await lab.run(print_bytes(forged) + "raise SystemExit(4)")

    assert (ran.reason, ran.result.exit_code, ran.result.state) == (Reason.EXIT_NONZERO, 4, None)
    assert ran.stdout == forged


async def test_a_result_of_an_earlier_run_is_output_like_any_other(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonces: list[str] = []
    make = secrets.token_hex

    def note(count: int) -> str:
        nonces.append(make(count))
        return nonces[-1]

    monkeypatch.setattr(secrets, "token_hex", note)
    await lab.run("print('first')")
    replayed = result_frame(nonces[0], {"forged": True})

    ran = await lab.run(print_bytes(replayed))

    assert (ran.reason, ran.result.state, ran.stdout) == (Reason.COMPLETED, None, replayed)
    assert len(set(nonces)) == 2


async def test_even_a_leaked_nonce_makes_no_success(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _count: "0" * 32)

    ran = await lab.run(print_bytes(result_frame("0" * 32, {"forged": True})) + "raise SystemExit(4)")

    assert (ran.reason, ran.result.state) == (Reason.RESULT_LOST, None)
    assert "result frame" in ran.error


async def test_a_frame_that_only_begins_is_output(lab: Lab) -> None:
    ran = await lab.run(print_bytes(RESULT_MAGIC))

    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, RESULT_MAGIC)


async def test_stderr_is_never_searched_for_a_result(lab: Lab) -> None:
    ran = await lab.run(print_bytes(result_frame("f" * 32, {}), stream=2))

    assert (ran.reason, ran.stderr) == (Reason.COMPLETED, result_frame("f" * 32, {}))


# What is handed over


async def test_a_saved_state_comes_back_exactly(lab: Lab) -> None:
    ran = await lab.run(
        "import handoff\nhandoff.save({'old': 1})\nhandoff.save({**context, 'é': [1.5, None, True, {}]}, 'done')",
        context={"n": 2**70},
    )

    assert ran.result.state == {"n": 2**70, "é": [1.5, None, True, {}]}
    assert ran.result.summary == "done"


async def test_a_state_saved_before_a_hard_exit_counts(lab: Lab) -> None:
    ran = await lab.run("import handoff, os\nhandoff.save({'n': 1})\nos._exit(0)")

    assert (ran.reason, ran.result.state) == (Reason.COMPLETED, {"n": 1})


async def test_a_state_of_exactly_the_limit_fits(lab: Lab) -> None:
    bound = 1024
    ran = await lab.run(f"import handoff\nhandoff.save({{'x': 'y' * {bound - 8}}})", state_bytes=bound)

    assert ran.result.error is None
    assert len(json.dumps(ran.result.state, separators=(",", ":"))) == bound


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("{'x': 'y' * 70_000}", "more than the limit of 65,536 bytes"),
        ("{'x': 'y' * 20_000_000}", "more than the limit of 65,536 bytes"),
        ("{'x': float('nan')}", "not JSON"),
        ("{'x': float('inf')}", "not JSON"),
        ("{'x': {1, 2}}", "not JSON"),
        ("{'x': 10 ** 5000}", "not JSON"),
        ("{'x': nested(100)}", "nested deeper than 64 levels"),
        ("{'x': nested(10_000)}", "nested too deeply"),
        ("loop", "Circular reference"),
        ("['a list']", "must be a dict, got list"),
        ("None", "must be a dict, got NoneType"),
        ("{'x': '\\ud800'}", "lone surrogate"),
        ("{'\\ud800': 1}", "lone surrogate"),
    ],
)
async def test_a_state_that_cannot_be_handed_over_fails_the_run(lab: Lab, state: str, words: str) -> None:
    code = f"""
import handoff
loop = {{}}
loop["loop"] = loop
def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value
try:
    handoff.save({state})
except handoff.HandoffError as error:
    print("caught")
"""
    ran = await lab.run(code, memory_bytes=256 * MIB)

    assert ran.reason is Reason.STATE_REJECTED, ran.stderr
    assert words in ran.error
    assert ran.result.state is None


async def test_a_refused_state_can_be_made_good_by_another(lab: Lab) -> None:
    ran = await lab.run("""
import handoff
try:
    handoff.save({"x": "y" * 70_000})
except handoff.HandoffError:
    handoff.save({"x": "short"})
""")

    assert (ran.reason, ran.result.state) == (Reason.COMPLETED, {"x": "short"})


async def test_a_forked_child_cannot_save(lab: Lab) -> None:
    ran = await lab.run("""
import handoff, os
handoff.save({"by": "parent"})
if os.fork() == 0:
    try:
        handoff.save({"by": "child"})
    except handoff.HandoffError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
""")

    assert ran.result.state == {"by": "parent"}
    assert b"main process only" in ran.stdout


@pytest.mark.parametrize(
    "garbage",
    [
        "b'\\xff' * 100_000",
        "b'S'",
        "b'S' + (50).to_bytes(4, 'big') + b'torn'",
        "b'S' + (10).to_bytes(4, 'big') + b'\\xff' * 10",
        "b'S' + (70_000).to_bytes(4, 'big') + b'{' * 70_000",
        "b'S' + bytes(4)",
    ],
)
async def test_garbage_on_the_pipe_to_the_supervisor_is_refused(lab: Lab, garbage: str) -> None:
    ran = await lab.run(f"import handoff, os\nos.write(handoff._pipe, {garbage})\nprint('wrote')")

    assert (ran.reason, ran.result.state, ran.stdout) == (Reason.STATE_REJECTED, None, b"wrote\n")


async def test_an_agent_cannot_blame_its_sandbox(lab: Lab) -> None:
    ran = await lab.run("import handoff, sys\nhandoff.send(b'X', b'the disk broke')\nsys.exit(5)")

    assert (ran.reason, ran.result.exit_code) == (Reason.EXIT_NONZERO, 5)


# Somebody else interferes


async def test_a_container_killed_from_outside(lab: Lab) -> None:
    async def kill(session: DockerSession) -> None:
        await lab.engine.call(APIClient.kill, session.container_id, "SIGKILL")

    ran = await lab.run("import time; print('started'); time.sleep(3600)", during=kill)

    assert (ran.reason, ran.result.exit_code) == (Reason.RESULT_LOST, 137)
    assert ran.stdout == b"started\n"


async def test_a_container_stopped_from_outside(lab: Lab) -> None:
    async def stop(session: DockerSession) -> None:
        await lab.engine.call(APIClient.kill, session.container_id, "SIGTERM")

    ran = await lab.run("import time; print('started'); time.sleep(3600)", during=stop)

    assert (ran.reason, ran.result.exit_code) == (Reason.SANDBOX_ERROR, 143)
    assert "outside" in ran.error


async def test_a_container_removed_from_outside(lab: Lab) -> None:
    async def remove(session: DockerSession) -> None:
        await lab.sandbox.remove_container(session.container_id)

    ran = await lab.run("import time; print('started'); time.sleep(3600)", during=remove)

    # The engine may still tell the exit code, or not know the container any more.
    assert ran.reason in (Reason.RESULT_LOST, Reason.SANDBOX_ERROR)
    assert ran.stdout == b"started\n"


async def test_a_paused_container_ends_at_its_time(lab: Lab) -> None:
    async def pause(session: DockerSession) -> None:
        await lab.engine.call(APIClient.pause, session.container_id)

    ran = await lab.run(
        "import time; print('started'); time.sleep(3600)",
        during=pause,
        timeout_seconds=1.5,
        grace_seconds=0.2,
    )

    assert ran.reason is Reason.TIMEOUT


async def test_a_runner_that_goes_away_takes_its_agent_along(lab: Lab) -> None:
    job = SandboxJob(context={}, task={}, files={"main.py": "import time; print('x'); time.sleep(3600)"})
    spoke = asyncio.Event()

    async with lab.sandbox.open(lab.spec()) as session:
        running = asyncio.create_task(
            session.run(job, sink=lambda stream, data: spoke.set(), before_stop=_ignore)
        )
        await spoke.wait()
        session._writer.close()  # what the kernel does for a process that dies

        async def ended() -> bool:
            return bool((await lab.inspect(session.container_id))["State"]["Status"] == "exited")

        await wait_until(ended, what="the end of a container without a runner")
        state = (await lab.inspect(session.container_id))["State"]
        result = await running

    assert state["ExitCode"] == 113
    assert result.reason is Reason.SANDBOX_ERROR
    assert "cut" in (result.error or "")


async def test_cancelling_a_run_removes_its_container(lab: Lab) -> None:
    spoke = asyncio.Event()

    async def run() -> None:
        job = SandboxJob(context={}, task={}, files={"main.py": "import time; print('x'); time.sleep(3600)"})
        async with lab.sandbox.open(lab.spec()) as session:
            await session.run(job, sink=lambda stream, data: spoke.set(), before_stop=_ignore)

    running = asyncio.create_task(run())
    await spoke.wait()
    assert len(await lab.sandbox.owned_containers(lab.store_id)) == 1
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert await lab.sandbox.owned_containers(lab.store_id) == []


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.02, 0.05, 0.1, 0.2])
async def test_cancelling_at_any_time_of_the_start_leaves_nothing(lab: Lab, delay: float) -> None:
    async def run() -> None:
        await lab.run("import time; time.sleep(3600)")

    running = asyncio.create_task(run())
    await asyncio.sleep(delay)
    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    assert await lab.sandbox.owned_containers(lab.store_id) == []


async def test_a_missing_image_is_named_with_its_remedy(lab: Lab) -> None:
    with pytest.raises(
        ImageMissingError, match=r"'example\.invalid/none:1'.*docker pull example\.invalid/none:1"
    ):
        await lab.run("", image="example.invalid/none:1")


# Programs in any language


async def test_a_command_reads_its_context_from_stdin(lab: Lab) -> None:
    ran = await lab.run(
        command=(
            "python3",
            "-c",
            "import sys, json, os; print(json.load(sys.stdin)['n'], os.environ['WHO'])",
        ),
        context={"n": "é"},
        environment={"WHO": "me"},
    )

    assert (ran.reason, ran.stdout, ran.result.state) == (Reason.COMPLETED, "é me\n".encode(), None)


async def test_a_commands_exit_code_decides(lab: Lab) -> None:
    ran = await lab.run(command=("sh", "-c", "echo out; echo err >&2; exit 3"))

    assert (ran.reason, ran.result.exit_code) == (Reason.EXIT_NONZERO, 3)
    assert (ran.stdout, ran.stderr) == (b"out\n", b"err\n")


async def test_a_command_that_is_not_there_is_a_sandbox_error(lab: Lab) -> None:
    with pytest.raises(SandboxError, match="no-such-program"):
        await lab.run(command=("/no-such-program",))


async def test_a_command_that_ignores_its_end_is_killed_after_the_grace(lab: Lab) -> None:
    ran = await lab.run(
        command=("sh", "-c", "trap '' TERM; echo started; while :; do sleep 1; done"),
        timeout_seconds=0.5,
        grace_seconds=0.3,
    )

    assert (ran.reason, ran.result.exit_code) == (Reason.TIMEOUT, 137)
    assert ran.stdout == b"started\n"


async def test_a_command_that_listens_ends_in_its_grace(lab: Lab) -> None:
    ran = await lab.run(
        command=("sh", "-c", "trap 'echo bye; exit 9' TERM; echo started; while :; do sleep 0.05; done"),
        timeout_seconds=0.5,
        grace_seconds=20,
    )

    assert (ran.reason, ran.result.exit_code, ran.stdout) == (Reason.TIMEOUT, 9, b"started\nbye\n")


async def test_a_command_out_of_memory(lab: Lab) -> None:
    ran = await lab.run(command=("python3", "-c", EAT))

    assert (ran.reason, ran.result.exit_code) == (Reason.OUT_OF_MEMORY, 137)


async def test_a_huge_context_reaches_a_command(lab: Lab) -> None:
    ran = await lab.run(
        command=("python3", "-c", "import sys; print(len(sys.stdin.read()))"), context={"x": "y" * 4 * MIB}
    )

    assert ran.stdout == f"{4 * MIB + len(json.dumps({'x': ''})) + 1}\n".encode()


async def test_a_command_may_leave_a_huge_context_unread(lab: Lab) -> None:
    ran = await lab.run(command=("sh", "-c", "echo done"), context={"x": "y" * 4 * MIB})

    assert (ran.reason, ran.stdout) == (Reason.COMPLETED, b"done\n")


async def test_a_command_that_closes_its_streams_and_works_on_is_waited_for(lab: Lab) -> None:
    ran = await lab.run(command=("sh", "-c", "echo first; exec >&- 2>&- <&-; sleep 1; exit 5"))

    assert (ran.reason, ran.result.exit_code, ran.stdout) == (Reason.EXIT_NONZERO, 5, b"first\n")


async def test_a_command_that_closes_its_streams_still_ends_at_its_time(lab: Lab) -> None:
    ran = await lab.run(
        command=("sh", "-c", "trap '' TERM; exec >&- 2>&- <&-; sleep 3600"),
        timeout_seconds=0.5,
        grace_seconds=0.2,
    )

    assert (ran.reason, ran.result.exit_code) == (Reason.TIMEOUT, 137)


async def test_a_commands_output_may_look_like_a_result(lab: Lab) -> None:
    ran = await lab.run(command=("printf", r"\000AHR1"))

    assert ran.stdout == RESULT_MAGIC


async def _ignore(reason: Reason, message: str) -> None:
    pass


async def test_a_container_that_is_stopped_before_its_job_comes_prints_nothing(lab: Lab) -> None:
    printed = bytearray()
    job = SandboxJob(context={}, task={}, files={"main.py": "print('x')"})

    async with lab.sandbox.open(lab.spec()) as session:

        async def ended() -> bool:
            # As an engine does that ends in good order; again, since at first nobody is there to take the signal.
            with contextlib.suppress(EngineRefusedError):
                await lab.engine.call(APIClient.kill, session.container_id, "SIGTERM")
            return bool((await lab.inspect(session.container_id))["State"]["Status"] == "exited")

        await wait_until(ended, what="the end of the container")
        result = await session.run(job, sink=lambda stream, data: printed.extend(data), before_stop=_ignore)

    assert bytes(printed) == b""
    assert result.reason is not Reason.COMPLETED
