"""Egress on the real engine: what is on the list is reached, nothing else is, and the relay goes with its run."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient
from tests.sandboxes import Lab, used_store_ids, wait_until

from harness.clock import SystemClock
from harness.egress import PROXY_ENVIRONMENT
from harness.egress.decision import Decision, Verdict
from harness.egress.mux import MAX_CONNECTIONS
from harness.errors import SandboxError
from harness.executor import AgentExecutor
from harness.models import AgentDraft, Reason
from harness.ports import SandboxLabels
from harness.recovery import sweep
from harness.sandbox.docker import DockerSandbox
from harness.sandbox.hostconfig import LABEL_ROLE
from harness.sandbox.session import DockerSession
from harness.settings import Settings
from harness.store.sqlite import SqliteStore
from harness.wiring import make_sandbox

#: Shared by agents: `get` returns a status and a body, through the proxy or an answer of its own.
#: The tests' servers are on this machine, at an address that a program takes for its own.
EVERYWHERE = {"NO_PROXY": "", "no_proxy": ""}
ENVIRONMENT = {**PROXY_ENVIRONMENT, **EVERYWHERE}

TOOLS = """
import http.client, json, os, socket, sys, time, urllib.error, urllib.request

def get(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return [answer.status, answer.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
    except OSError as error:
        return [0, repr(error)]

def tunnel(place):
    try:
        made = http.client.HTTPConnection("127.0.0.1", 3128, timeout=10)
        host, port = place.rsplit(":", 1)
        made.set_tunnel(host, int(port))
        made.request("GET", "/tunnel")
        answer = made.getresponse()
        return [answer.status, answer.read().decode()]
    except OSError as error:
        return [0, str(error)]
"""


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]],
) -> AsyncIterator[int]:
    """Serve HTTP on all of this machine's addresses; yields the port."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await handle(reader, writer, head.split(" ")[1])
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(served, "0.0.0.0", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def hello(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    body = f"hello {path}".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


@pytest.fixture
async def sandbox(sandbox_image: str, no_container_is_left: None) -> AsyncIterator[DockerSandbox]:
    """A sandbox whose runs may reach this machine, if their list says so; two containers may wait."""
    settings = Settings.load().model_copy(update={"egress_private": "127.0.0.0/8", "warm_containers": 2})
    sandbox = make_sandbox(settings, SystemClock())
    yield sandbox
    await sandbox.close()


@pytest.fixture
async def lab(sandbox: DockerSandbox, sandbox_image: str) -> AsyncIterator[Lab]:
    lab = Lab(sandbox, sandbox_image)
    yield lab
    await sandbox.pool.close()
    await sandbox.settle()
    assert await sandbox.owned_containers(lab.store_id) == []


async def ask(lab: Lab, code: str, *rules: str, **more: Any) -> Any:
    """Run an agent with these rules; return what it printed, as JSON."""
    ran = await lab.run(TOOLS + code, env=ENVIRONMENT, egress=rules, **more)
    assert ran.reason is Reason.COMPLETED, (ran.error, ran.stderr)
    return json.loads(ran.stdout)


async def relays(lab: Lab) -> list[dict[str, Any]]:
    """What the engine says of the relays that there are, in whatever state."""
    found = [await lab.inspect(one.container_id) for one in await lab.sandbox.owned_containers(lab.store_id)]
    return [one for one in found if LABEL_ROLE in one["Config"]["Labels"]]


# What is reached


async def test_a_listed_place_is_reached_by_request_and_by_tunnel_and_each_decision_is_told(lab: Lab) -> None:
    decisions: list[Decision] = []
    async with serving(hello) as port:
        place = f"127.0.0.1:{port}"
        code = f'print(json.dumps([get("http://{place}/a"), tunnel("{place}"), get("http://example.com/")]))'
        got = await ask(lab, code, place, on_egress=decisions.append)

    assert got[:2] == [[200, "hello /a"], [200, "hello /tunnel"]]
    assert got[2][0] == 403
    assert 'add "example.com:80" to egress' in got[2][1]
    assert [(one.verdict, one.place, one.address) for one in decisions] == [
        (Verdict.ALLOWED, place, "127.0.0.1"),
        (Verdict.ALLOWED, place, "127.0.0.1"),
        (Verdict.REFUSED, "example.com:80", None),
    ]


async def test_megabytes_come_through_whole_both_ways(lab: Lab) -> None:
    size = 8 * 1024 * 1024

    async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _path: str) -> None:
        body = await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)
        await writer.drain()

    code = f"""
import hashlib
data = os.urandom({size})
began = time.monotonic()
with urllib.request.urlopen(urllib.request.Request(sys.argv[0] and URL, data=data), timeout=25) as answer:
    print(json.dumps(hashlib.sha256(answer.read()).digest() == hashlib.sha256(data).digest()))
"""
    async with serving(mirror) as port:
        assert await ask(lab, f'URL = "http://127.0.0.1:{port}/"\n{code}', f"127.0.0.1:{port}") is True


async def test_what_an_agent_serves_to_itself_is_no_affair_of_the_relays(lab: Lab) -> None:
    code = """
import http.server, threading, urllib.request
class Own(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
own = http.server.HTTPServer(("127.0.0.1", 0), Own)
threading.Thread(target=own.handle_request).start()
print(urllib.request.urlopen(f"http://localhost:{own.server_port}/").status)
"""
    ran = await lab.run(code, env=PROXY_ENVIRONMENT, egress=("example.com:443",))

    assert (ran.error, ran.stdout) == ("", b"204\n")


async def test_a_program_of_any_language_finds_the_way_by_its_environment(lab: Lab) -> None:
    async with serving(hello) as port:
        program = f"import urllib.request as u; input(); print(u.urlopen('http://127.0.0.1:{port}/x').read())"
        ran = await lab.run(
            command=("python3", "-c", program), environment=ENVIRONMENT, egress=(f"127.0.0.1:{port}",)
        )

    assert ran.stdout == b"b'hello /x'\n"


async def test_a_container_that_waited_is_used_and_has_its_way_out(lab: Lab) -> None:
    shape, owner = lab.spec().shape, "somebody"
    await lab.sandbox.keep_warm(lab.store_id, owner, {shape: 1}, now=datetime.now(UTC))

    async def waits() -> bool:
        return lab.sandbox.pool.count(shape) == 1

    await wait_until(waits, what="a container that waits")
    origins = []

    async def note(session: DockerSession) -> None:
        origins.append(session.origin)

    async with serving(hello) as port:
        url = f"http://127.0.0.1:{port}/warm"
        got = await ask(
            lab,
            f'print(json.dumps(get("{url}")), flush=True)',
            f"127.0.0.1:{port}",
            owner=owner,
            during=note,
        )

    assert got == [200, "hello /warm"]
    assert origins == ["warm"]


# What is not


async def test_no_other_way_leads_out(lab: Lab) -> None:
    async with serving(hello) as port:
        found = await ask(
            lab,
            f"""
def reach(host, port):
    try:
        socket.create_connection((host, port), timeout=3).close()
        return "reached"
    except OSError as error:
        return os.strerror(error.errno) if type(error).__module__ == "builtins" else type(error).__name__

addresses = ["172.17.0.1", "10.0.0.1", "169.254.169.254", "fd00:ec2::254", "1.1.1.1"]
print(json.dumps([
    sorted(set(reach(one, {port}) for one in addresses)),
    reach("127.0.0.1", {port}),
    reach("example.com", 80),
    [name for _, name in socket.if_nameindex() if name.startswith("eth")],
    sorted(name for name in os.listdir("/proc") if name.isdigit()).__len__() <= 3,
]))
""",
            f"127.0.0.1:{port}",
            "172.17.0.1:1",
        )

    assert set(found[0]) <= {"Network is unreachable", "Cannot assign requested address"}
    assert found[1:] == ["Connection refused", "gaierror", [], True]


@pytest.mark.parametrize("private", ["", "0.0.0.0/0, ::/0"])
async def test_metadata_addresses_are_refused_whoever_allows_them(
    sandbox_image: str, no_container_is_left: None, private: str
) -> None:
    settings = Settings.load().model_copy(update={"egress_private": private})
    sandbox = make_sandbox(settings, SystemClock())
    try:
        lab = Lab(sandbox, sandbox_image)
        places = [
            "169.254.169.254:80",
            "[fd00:ec2::254]:80",
            "[::ffff:169.254.169.254]:80",
            "100.100.100.200:80",
        ]
        code = f"print(json.dumps([get('http://' + place + '/latest/meta-data/') for place in {places}]))"
        got = await ask(lab, code, *places)
    finally:
        await sandbox.close()

    assert [status for status, _ in got] == [403] * 4


async def test_a_name_of_a_private_address_is_refused_though_it_is_listed(
    sandbox_image: str, no_container_is_left: None
) -> None:
    sandbox = make_sandbox(Settings.load(), SystemClock())
    decisions: list[Decision] = []
    try:
        async with serving(hello) as port:
            lab = Lab(sandbox, sandbox_image)
            code = f'print(json.dumps([get("http://localhost:{port}/"), tunnel("localhost:{port}")]))'
            got = await ask(lab, code, f"localhost:{port}", on_egress=decisions.append)
    finally:
        await sandbox.close()

    assert got[0][0] == 403
    assert "403" in got[1][1]
    assert {one.verdict for one in decisions} == {Verdict.REFUSED}


async def test_a_redirect_to_a_place_that_is_not_listed_is_refused(lab: Lab) -> None:
    async def redirect(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {targets[path]}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()

    async with serving(hello) as other, serving(redirect) as port:
        targets = {
            "/a": f"http://127.0.0.1:{other}/",
            "/b": "http://169.254.169.254/latest/",
            "/c": "/d",
            "/d": "/e",
        }
        targets["/e"] = "http://2130706433/"
        code = f"print(json.dumps([get('http://127.0.0.1:{port}' + path)[0] for path in ('/a', '/b', '/c')]))"
        got = await ask(lab, code, f"127.0.0.1:{port}")

    assert got == [403, 403, 400]


async def test_runs_at_the_same_time_have_each_their_own_list(lab: Lab) -> None:
    async with serving(hello) as one, serving(hello) as two:
        places = [f"127.0.0.1:{one}", f"127.0.0.1:{two}"]
        code = f"""
time.sleep(0.5)
print(json.dumps([get("http://" + place + "/")[0] for place in {places}]))
time.sleep(0.5)
"""
        got = await asyncio.gather(ask(lab, code, places[0]), ask(lab, code, places[1]), ask(lab, code))

    assert list(got) == [[200, 403], [403, 200], [0, 0]]


# The relay


async def test_the_relay_is_locked_down_and_shares_nothing_but_the_loopback(lab: Lab) -> None:
    seen: list[dict[str, Any]] = []
    containers: list[str] = []

    async def look(session: DockerSession) -> None:
        seen.extend(await relays(lab))
        containers.append(session.container_id)

    code = """
print("[", flush=True)
time.sleep(1)
others = [name for name in os.listdir("/proc") if name.isdigit() and b"egress_relay" in
          open(f"/proc/{name}/cmdline", "rb").read()]
print(json.dumps(others) + "]")
"""
    got = await ask(lab, code, "example.com:443", during=look)

    (relay,) = seen
    host = relay["HostConfig"]
    assert got == [[]]
    assert relay["Name"].endswith("-egress")
    assert relay["Config"]["User"] == "10002:10002"
    assert relay["Config"]["Image"] == lab.image
    assert relay["Config"]["Env"] == (await lab.inspect_image())["Config"]["Env"]
    assert host["NetworkMode"] == f"container:{containers[0]}"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["Memory"] == host["MemorySwap"] == 64 << 20
    assert (host["PidsLimit"], host["NanoCpus"]) == (16, 500_000_000)
    assert host["PidMode"] == ""
    assert host["IpcMode"] == "private"
    assert not host.get("Tmpfs")
    assert not host["Binds"]
    assert any(option.startswith("seccomp={") for option in host["SecurityOpt"])
    assert host["LogConfig"]["Type"] == "none"


@pytest.mark.parametrize(
    "how", ["ends", "fails", "times out", "is cancelled", "is killed", "loses its lease"]
)
async def test_the_relay_goes_with_its_run_however_that_ends(lab: Lab, how: str) -> None:
    there: list[int] = []

    async def act(session: DockerSession) -> None:
        there.append(len(await relays(lab)))
        if how == "is killed":
            await lab.engine.call(APIClient.kill, session.container_id, "SIGKILL")
        elif how == "loses its lease":
            await session.stop(Reason.LOST, "lost")
        elif how == "is cancelled":
            running.cancel()

    end = {"ends": "", "fails": "sys.exit(3)"}.get(how, "time.sleep(60)")
    running = asyncio.ensure_future(
        lab.run(
            f"{TOOLS}\nprint('started', flush=True); time.sleep(0.3); {end}",
            egress=("example.com:443",),
            timeout_seconds=1.0 if how == "times out" else 30.0,
            during=act,
        )
    )
    await asyncio.wait((running,))
    if how in ("is killed", "loses its lease", "is cancelled"):
        # Nothing was proved, so nothing is left to the background.
        assert await lab.sandbox.owned_containers(lab.store_id) == []
    await lab.sandbox.settle()

    assert there == [1]
    assert await lab.sandbox.owned_containers(lab.store_id) == []
    assert running.cancelled() == (how == "is cancelled")


async def test_closing_the_sandbox_takes_the_relay_of_an_abandoned_run_with_it(
    sandbox_image: str, lab: Lab
) -> None:
    sandbox = make_sandbox(Settings.load(), SystemClock())
    own = Lab(sandbox, sandbox_image)
    opened = sandbox.open(own.spec(egress=("example.com:443",)))
    await opened.__aenter__()
    assert len(await relays(own)) == 1

    await sandbox.close()

    assert await lab.sandbox.owned_containers(own.store_id) == []
    await opened.__aexit__(None, None, None)


RUNNER = """
import asyncio, sys
from harness.clock import SystemClock
from harness.config import MIB
from harness.ports import SandboxLabels, SandboxLimits, SandboxSpec
from harness.settings import Settings
from harness.wiring import make_sandbox

async def main():
    limits = SandboxLimits(64 * MIB, 1.0, 64, 16 * MIB, 600, 1, MIB, 65536)
    spec = SandboxSpec(limits, SandboxLabels(sys.argv[1], 1, 1), egress=("example.com:443",))
    async with make_sandbox(Settings.load(), SystemClock()).open(spec):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_of_a_runner_that_was_killed_the_relay_ends_and_is_swept_away(lab: Lab, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "harness.db")
    await store.open()
    used_store_ids.add(store.store_id)
    runner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUNNER, store.store_id), stdout=asyncio.subprocess.PIPE
    )
    try:
        try:
            assert runner.stdout is not None
            assert (await runner.stdout.readline()) == b"ready\n"
        finally:
            runner.kill()
            await runner.communicate()
        owned = await lab.sandbox.owned_containers(store.store_id)
        assert [one.labels for one in owned] == [SandboxLabels(store.store_id, 1, 1)] * 2

        async def has_ended() -> bool:
            found = await lab.sandbox.owned_containers(store.store_id)
            return all(one.state == "exited" for one in found)

        await wait_until(has_ended, what="the end of both")
        assert (await sweep(store, lab.sandbox)).removed_containers == 2
        assert await lab.sandbox.owned_containers(store.store_id) == []
    finally:
        await store.close()


async def test_a_relay_that_breaks_costs_the_run_its_network_and_no_more(lab: Lab) -> None:
    decisions: list[Decision] = []

    async def kill(_session: DockerSession) -> None:
        (relay,) = await relays(lab)
        await lab.engine.call(APIClient.kill, relay["Id"], "SIGKILL")

    async with serving(hello) as port:
        url = f"http://127.0.0.1:{port}/"
        code = f'print("[", flush=True); time.sleep(1); print(json.dumps(get("{url}")) + "]")'
        got = await ask(lab, code, f"127.0.0.1:{port}", during=kill, on_egress=decisions.append)

    assert got[0][0] == 0
    assert "refused" in got[0][1]
    assert [one.verdict for one in decisions] == [Verdict.ENDED]


async def test_a_run_whose_relay_does_not_start_does_not_begin(lab: Lab, sandbox_image: str) -> None:
    base = (await lab.inspect_image())["Config"]["Labels"]["io.agent-harness.base"]
    sandbox = make_sandbox(Settings(sandbox_image=base), SystemClock())
    own = Lab(sandbox, sandbox_image)
    try:
        with pytest.raises(SandboxError, match=r"relay for egress can't be used: .*egress_relay\.py"):
            await own.run(command=("sleep", "60"), egress=("example.com:443",))
        assert await sandbox.owned_containers(own.store_id) == []
    finally:
        await sandbox.close()


# Floods


async def test_a_thousand_connections_are_bounded_and_the_next_ones_are_served(lab: Lab) -> None:
    open_now = most = 0

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        nonlocal open_now, most
        if path == "/after":
            await hello(reader, writer, path)
            return
        open_now += 1
        most = max(most, open_now)
        try:
            await reader.read()
        finally:
            open_now -= 1

    async with serving(hold) as port:
        place = f"127.0.0.1:{port}"
        got = await ask(
            lab,
            f"""
made = []
for _ in range(1000):
    one = socket.socket()
    one.setblocking(False)
    try:
        one.connect(("127.0.0.1", 3128))
    except BlockingIOError:
        pass
    made.append(one)
end = time.monotonic() + 3
asked = set()
while time.monotonic() < end:
    for one in made:
        if one not in asked:
            try:
                one.send(b"CONNECT {place} HTTP/1.1\\r\\n\\r\\nGET / HTTP/1.1\\r\\n\\r\\n")
                asked.add(one)
            except OSError:
                pass
    time.sleep(0.05)
for one in made:
    one.close()
time.sleep(1)
print(json.dumps([len(asked) > {MAX_CONNECTIONS}, get("http://{place}/after")]))
""",
            place,
        )

    assert got == [True, [200, "hello /after"]]
    assert 1 < most <= MAX_CONNECTIONS


async def test_connections_that_never_read_hold_up_neither_the_others_nor_memory(lab: Lab) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        nonlocal sent
        if path == "/small":
            await hello(reader, writer, path)
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"." * 65536)
            await writer.drain()
            sent += 65536

    states: list[dict[str, Any]] = []

    async def look(_session: DockerSession) -> None:
        await asyncio.sleep(2)
        states.extend(relay["State"] for relay in await relays(lab))

    async with serving(pour) as port:
        got = await ask(
            lab,
            f"""
print("[", flush=True)
made = []
for _ in range(30):
    one = socket.create_connection(("127.0.0.1", 3128))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.sendall(b"GET http://127.0.0.1:{port}/big HTTP/1.1\\r\\n\\r\\n")
    made.append(one)
time.sleep(1)
began = time.monotonic()
answers = [get("http://127.0.0.1:{port}/small")[0] for _ in range(20)]
took = time.monotonic() - began
time.sleep(2)
print(json.dumps([answers, took < 5]) + "]")
""",
            f"127.0.0.1:{port}",
            during=look,
        )

    assert got == [[[200] * 20, True]]
    # Mostly in the system's own buffers: of the runner and the relay each connection has a few windows.
    assert sent < 30 * 16 * 1024 * 1024
    assert [(state["Running"], state["OOMKilled"]) for state in states] == [(True, False)]


# With the task


async def test_a_user_sees_with_the_task_what_was_decided(lab: Lab, tmp_path: Path, caplog: Any) -> None:
    store = SqliteStore(tmp_path / "harness.db")
    await store.open()
    used_store_ids.add(store.store_id)
    try:
        async with serving(hello) as port:
            place, metadata = f"127.0.0.1:{port}", "169.254.169.254:80"
            code = f'{TOOLS}\nprint(get("http://{place}/a"), get("http://{metadata}/")[0])'
            agent = await store.create_agent(
                AgentDraft(name="reader", code=code, config={"egress": [place], "env": EVERYWHERE})
            )
            executor = AgentExecutor(store=store, sandbox=lab.sandbox)
            with caplog.at_level("INFO", logger="harness.egress"):
                result = await executor.execute_agent(agent.id)
        await lab.sandbox.settle()
        logged = [chunk.data.decode() for chunk in await store.read_logs(1) if chunk.stream == "stderr"]
    finally:
        await store.close()

    assert result.stdout == "[200, 'hello /a'] 403\n"
    assert "".join(logged) == result.stderr
    assert result.stderr.splitlines() == [
        f"[harness] egress allowed: {place} at 127.0.0.1",
        (
            f"[harness] egress refused: {metadata}: it is not in the agent's egress list; "
            f'add "{metadata}" to egress in its config'
        ),
    ]
    actions = [(one.action, one.task_id, one.agent_id) for one in caplog.records if hasattr(one, "action")]
    assert actions == [("egress_allowed", 1, agent.id), ("egress_refused", 1, agent.id)]
