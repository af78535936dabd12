"""The child of the supervisor in a Python sandbox: gets ready, waits for its job, and becomes the agent.

Forked before anything was read, so it never had the nonce. All that can be done before the job comes is done before, for
containers that wait. Nothing here is trusted by the supervisor, since the agent's code can change all of it. Standard
library only, and as little of it as can be; see ``supervisor.py``.
"""

import json
import os
import sys

import handoff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

AGENT_DIR = "/tmp/agent"  # noqa: S108 - the sandbox's own tmpfs, empty and private
#: Exit code for a supervisor that ended before it sent a whole job.
EXIT_NO_JOB = 113
MAX_ERROR_BYTES = 4096


def main(job_pipe: int, report_pipe: int) -> "NoReturn":
    """Wait for the job, run it as ``__main__``, end as the interpreter would."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    prefer_me_for_oom()
    for stream in (sys.stdout, sys.stderr):
        # Lines are seen while the run lives, and survive a kill.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    for name in ("supervisor", "harness_json", __name__):
        del sys.modules[name]  # an agent may have files of these names
    size = int.from_bytes(read_exactly(job_pipe, 4), "big")
    job = json.loads(read_exactly(job_pipe, size))
    os.close(job_pipe)
    handoff.bind(report_pipe, job["state_bytes"], job["context"], job["task"])
    os.environ.update(job["env"])
    code = 1
    try:
        path = unpack(job["files"], job["entrypoint"])
    except (OSError, ValueError) as error:
        handoff.send(b"X", f"the agent's files could not be written: {error}".encode(errors="replace"))
    else:
        handoff.send(b"B", b"")
        code = run_script(path, job["context"])
    os._exit(finalize(code))


def prefer_me_for_oom() -> None:
    """Have the kernel kill the agent, not the supervisor, when the container's memory is full: proc(5)."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, b"1000")
        os.close(fd)
    except OSError:
        pass  # not offered by every runtime; the supervisor's end is then reported by the engine


def read_exactly(fd: int, count: int) -> bytes:
    """Read `count` bytes; the supervisor ended when there are fewer."""
    parts = []
    while count:
        data = os.read(fd, min(count, 1 << 20))
        if not data:
            os._exit(EXIT_NO_JOB)
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def unpack(files: dict[str, str], entrypoint: str) -> str:
    """Write the agent's files below its directory and return the path of the one to run."""
    os.mkdir(AGENT_DIR)
    for name, text in files.items():
        path = f"{AGENT_DIR}/{name}"
        if "/" in name:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb", buffering=0) as file:
            view = memoryview(text.encode())
            while view:
                view = view[file.write(view) :]
    return f"{AGENT_DIR}/{entrypoint}"


def run_script(path: str, context: "dict[str, Any]") -> int:
    """Run a file as ``__main__`` with `context` among its globals; return the exit code."""
    module = type(sys)("__main__")
    module.__dict__.update(__file__=path, __builtins__=__builtins__, context=context)
    sys.modules["__main__"] = module
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(path))
    os.chdir(AGENT_DIR)
    try:
        with open(path, "rb") as file:
            source = file.read()
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - running code is what this image is for
    except SystemExit as stop:
        return exit_code(stop)
    except BaseException as error:  # noqa: BLE001 - what the interpreter does at top level
        return show_error(error)
    return 0


def exit_code(stop: SystemExit) -> int:
    """Turn ``sys.exit(…)`` into an exit code as the interpreter does."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code & 0xFF
    print(stop.code, file=sys.stderr)
    report_error(str(stop.code))
    return 1


def show_error(error: BaseException) -> int:
    """Print the traceback without the supervisor's own frame, and pass its last line on."""
    import traceback

    error = error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)
    sys.excepthook(type(error), error, error.__traceback__)
    report_error(traceback.format_exception_only(error)[-1].strip())
    return 1


def report_error(text: str) -> None:
    """Tell the supervisor in one line what ended the agent."""
    try:
        handoff.send(b"E", text[:MAX_ERROR_BYTES].encode(errors="replace"))
    except OSError:
        pass  # the agent closed the pipe; the traceback on stderr remains


def finalize(code: int) -> int:
    """Do what interpreter shutdown does for a program: join threads, run atexit, flush. Skips freeing memory."""
    import atexit

    threading = sys.modules.get("threading")
    try:
        if threading is not None:
            threading._shutdown()  # noqa: SLF001 - what Py_FinalizeEx calls; no public name
        atexit._run_exitfuncs()  # noqa: SLF001 - the same
    except BaseException as error:  # noqa: BLE001 - reported as the interpreter would
        code = code or show_error(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            code = code or 120  # what CPython exits with when flushing fails
    return code
