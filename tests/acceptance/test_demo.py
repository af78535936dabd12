"""The demo, as a newcomer starts it, on the real engine."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient
from tests.sandboxes import Lab

from harness import Settings, open_runtime
from harness.demo.session import AGENT_NAME
from harness.models import HandoffArtifact, TaskStatus
from harness.sandbox.hostconfig import LABEL_STORE

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("sandbox_image", "no_container_is_left")]

COMMAND = [sys.executable, "-W", "error", "-m", "harness.demo"]

#: Counts without `ast`: every `def` and `class` token begins a definition, and every line ends once.
COUNT = """
import handoff, os, sysconfig, tokenize, warnings

warnings.simplefilter("ignore")
counts = {"modules": 0, "lines": 0, "functions": 0, "classes": 0}
for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
    folders[:] = [name for name in folders if name not in ("site-packages", "dist-packages")]
    for name in names:
        if name.endswith(".py"):
            counts["modules"] += 1
            with open(os.path.join(folder, name), "rb") as file:
                counts["lines"] += len(file.readlines())
                file.seek(0)
                tokens = [token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME]
            counts["functions"] += tokens.count("def")
            counts["classes"] += tokens.count("class")
handoff.save(counts)
"""


def run_demo(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demo with a temporary folder of its own, which it has to leave empty."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert list(temporary.iterdir()) == []
    return done


def rows(printed: str) -> list[list[str]]:
    """Return the rows of the table of runs."""
    table = printed.partition("the runs, as they are stored")[2].partition("the findings")[0]
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if re.match(r" *\d+ ", line)]


async def artifacts_in(data_dir: Path) -> list[HandoffArtifact]:
    async with open_runtime(Settings(data_dir=data_dir, mongodb_uri=None)) as runtime:
        agent = await runtime.store.find_agent(AGENT_NAME)
        return list(await runtime.store.artifact_history(agent.id))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, sandbox_image: str) -> subprocess.CompletedProcess[str]:
    """A demo that has run, piped."""
    return run_demo(tmp_path_factory.mktemp("first"))


async def test_demo_audits_the_whole_library_and_leaves_nothing_every_time(
    tmp_path: Path, lab: Lab, first: subprocess.CompletedProcess[str]
) -> None:
    counted = (await lab.run(COUNT, timeout_seconds=100)).result.state
    assert counted is not None

    for done in (first, run_demo(tmp_path)):
        assert (done.returncode, done.stderr) == (0, "")
        table = rows(done.stdout)
        assert [row[0] for row in table] == [str(number) for number in range(1, 11)]
        assert {row[1] for row in table} == {"completed"}
        batch = -(-counted["modules"] // 10)
        assert [int(row[7]) for row in table] == [
            min(batch * number, counted["modules"]) for number in range(1, 11)
        ]
        for row in table:
            assert re.fullmatch(r"[\d.]+ (ms|s)", row[2]), "wall time"
            assert re.fullmatch(r"[\d.]+ (ms|s)", row[3]), "container start"
            assert re.fullmatch(r"\d+\.\d MiB", row[4]), "peak memory"
            assert re.fullmatch(r"[\d.]+ (ms|s)", row[5]), "CPU"
            assert re.fullmatch(r"\d+\.\d KiB", row[6]), "state"
        assert (
            f": {counted['lines']:,} lines, {counted['classes']:,} classes, {counted['functions']:,} functions"
            in done.stdout
        )
        assert f"modules audited: {counted['modules']} of {counted['modules']}" in done.stdout
        assert "containers used: 10 for 10 runs" in done.stdout
        assert "containers left: 0" in done.stdout
        assert "NOT OK" not in done.stdout


def test_piped_demo_is_plain_text_with_each_step_explained_once(
    first: subprocess.CompletedProcess[str],
) -> None:
    printed = first.stdout

    assert not re.search(r"[^\n\x20-\x7e…─]", printed)
    assert max(len(line) for line in printed.splitlines() if "most complex so far" not in line) <= 80
    for step in ("LOAD", "EXECUTE", "SUMMARIZE", "RESET"):
        assert len(re.findall(rf"^  {step} ", printed, re.MULTILINE)) == 1


async def test_interrupted_demo_removes_its_container_and_a_kept_one_goes_on(
    tmp_path: Path, lab: Lab
) -> None:
    kept = tmp_path / "kept"
    assert interrupt_in_the_third_run(kept, signal.SIGINT) == 130

    await assert_nothing_is_left_running(kept, lab)
    audited = (await artifacts_in(kept))[0].state["cursor"]
    assert audited > 0

    second = run_demo(tmp_path, "--keep", str(kept))

    assert (second.returncode, second.stderr) == (0, "")
    assert f"going on after {audited} modules" in second.stdout
    assert len(rows(second.stdout)) < 10
    finished = (await artifacts_in(kept))[0]
    assert finished.state["done"]
    assert finished.state["cursor"] == finished.state["counts"]["modules"] == finished.state["total"]

    third = run_demo(tmp_path, "--keep", str(kept))

    assert third.returncode == 0
    assert f"nothing left to do: all {finished.state['total']} modules are audited" in third.stdout
    assert len(rows(third.stdout)) == 1
    newest = (await artifacts_in(kept))[0]
    assert newest.version == finished.version + 1
    assert newest.state == finished.state


async def test_closing_its_terminal_removes_the_container(tmp_path: Path, lab: Lab) -> None:
    assert interrupt_in_the_third_run(tmp_path, signal.SIGHUP) == 129

    await assert_nothing_is_left_running(tmp_path, lab)


def interrupt_in_the_third_run(kept: Path, number: signal.Signals) -> int:
    with subprocess.Popen(
        [*COMMAND, "--keep", str(kept)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("run 3"):
                process.send_signal(number)
                break
        rest, errors = process.communicate(timeout=60)
    assert "containers left: 0" in rest
    assert re.fullmatch(r"error: stopped by SIG(INT|TERM|HUP)\n", errors)
    return process.returncode


async def assert_nothing_is_left_running(kept: Path, lab: Lab) -> None:
    async with open_runtime(Settings(data_dir=kept, mongodb_uri=None)) as runtime:
        labelled = {"label": f"{LABEL_STORE}={runtime.store.store_id}"}
        assert await lab.engine.call(APIClient.containers, all=True, filters=labelled) == []
        assert (await runtime.store.list_tasks(status=TaskStatus.RUNNING)).total_count == 0


def test_findings_shown_are_those_of_the_stored_artifact(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    printed = run_demo(tmp_path, "--keep", str(kept)).stdout
    harness = Path(sys.executable).with_name("harness")
    answer = subprocess.run(
        [harness, "handoff", "show", AGENT_NAME, "--json"],
        env={**os.environ, "HARNESS_DATA_DIR": str(kept)},
        capture_output=True,
        text=True,
        check=True,
    )
    state: dict[str, Any] = json.loads(answer.stdout)["state"]

    assert len(answer.stdout) < 16_000
    shown = printed.partition("most complex functions")[2]
    for entry in state["most_complex"][:5]:
        pattern = rf"^{re.escape(entry['name'])} +{entry['complexity']} +{entry['lines']} *$"
        assert re.search(pattern, shown, re.MULTILINE)
    counts = state["counts"]
    assert f"{counts['documented'] / counts['public']:.1%} of {counts['public']:,} public" in printed


def test_what_it_says_to_try_next_works_as_it_stands(
    tmp_path: Path, first: subprocess.CompletedProcess[str]
) -> None:
    commands = first.stdout.partition("What to try next:\n")[2]
    answer = subprocess.run(
        ["sh", "-ec", commands],
        cwd=tmp_path,
        env={**os.environ, "HARNESS_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert answer.returncode == 0, answer.stderr
    assert '"runs": 1' in answer.stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_demo_draws_its_bar_on_a_terminal_and_gives_the_cursor_back(tmp_path: Path, columns: int) -> None:
    printed, code = run_on_terminal(tmp_path, columns)

    assert code == 0
    assert "━" in printed
    assert printed.count("\x1b[?25l") == printed.count("\x1b[?25h") == 1, "cursor hidden, and shown again"
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in printed.replace("\r", "\n").splitlines()]
    assert max(map(len, lines)) <= columns
    assert "ok     containers left: 0" in lines


def run_on_terminal(folder: Path, columns: int) -> tuple[str, int]:
    """Run the demo on a terminal of that width; return all that was written to it, and the exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    with subprocess.Popen(
        COMMAND,
        cwd=folder,
        env={**environment, "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        written = bytearray()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # how Linux says that nobody has the other end open
                break
            if not data:
                break
            written += data
        os.close(ours)
        return written.decode(), process.wait(10)


def test_without_an_engine_it_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    done = run_demo(tmp_path, DOCKER_HOST=f"unix://{tmp_path}/none.sock")

    assert done.returncode == 4
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "none.sock does not answer" in done.stderr
    assert "./justw docker-engine" in done.stderr


def test_failed_run_fails_the_demo(tmp_path: Path) -> None:
    done = run_demo(tmp_path, HARNESS_SANDBOX_IMAGE="agent-harness/python:none")

    assert done.returncode == 1
    assert [row[1] for row in rows(done.stdout)] == ["sandbox_error"]
    assert "NOT OK runs completed: 0 of 1" in done.stdout
    assert "NOT OK containers used: 0 for 1 runs" in done.stdout
    assert "containers left: 0" in done.stdout
    assert "What to try next" not in done.stdout


def test_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with subprocess.Popen(
        COMMAND, cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(write_end)
        _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (141, "")
