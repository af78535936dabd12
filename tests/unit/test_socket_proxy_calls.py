"""What the socket proxy lets through, decided without an engine: the product's own calls, and nothing beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from docker.types import HostConfig, Mount
from hypothesis import given
from hypothesis import strategies as st

from harness.config import MIB
from harness.ports import SandboxLabels, SandboxLimits, SandboxSpec
from harness.sandbox.hostconfig import Isolation, container_name, creation_body, relay_body, relay_name
from harness.sandbox.proxy.calls import check_call
from harness.sandbox.proxy.creation import check_creation
from harness.sandbox.proxy.request import MAX_HEAD_BYTES, RefusedError, Request, parse_json, read_request

VERSION = "1.41"
ID = "0123456789abcdef" * 4
LABELS = SandboxLabels("ab" * 16, 7, 2)
LIMITS = SandboxLimits(64 * MIB, 0.5, 32, 16 * MIB, 30, 1, MIB, 65536)
SPECS = st.builds(
    SandboxSpec,
    limits=st.builds(
        SandboxLimits,
        memory_bytes=st.integers(16, 1024 * 1024).map(lambda mib: mib * MIB),
        cpus=st.floats(0.01, 1024),
        max_processes=st.integers(8, 32768),
        tmp_bytes=st.integers(1, 1024 * 1024).map(lambda mib: mib * MIB),
        timeout_seconds=st.just(30),
        grace_seconds=st.just(1),
        output_bytes=st.just(MIB),
        state_bytes=st.just(1024),
    ),
    labels=st.builds(
        SandboxLabels, st.uuids().map(lambda uuid: uuid.hex), st.integers(1, 10**9), st.integers(1, 99)
    ),
    command=st.none() | st.lists(st.text(min_size=1), min_size=1).map(tuple),
    environment=st.dictionaries(st.from_regex("[A-Z_]{1,9}", fullmatch=True), st.text()),
    network=st.sampled_from(["none", "open"]),
)


def body(**changes: Any) -> dict[str, Any]:
    """What the product sends, changed at the top."""
    return (
        creation_body("agent-harness/python:1", SandboxSpec(LIMITS, LABELS).shape, LABELS, VERSION) | changes
    )


def with_host(**changes: Any) -> dict[str, Any]:
    return body(HostConfig=body()["HostConfig"] | changes)


def check(sent: Any) -> dict[str, Any]:
    return check_creation(sent, container_name(LABELS), VERSION)


def request(method: str, target: str, *, data: bytes = b"", upgrade: bool = False) -> Request:
    path, _, query = target.partition("?")
    return Request(method, path, query, "1.1", upgrade, data)


ISOLATION = Isolation("runsc", "harness-agent")


def test_a_runtime_and_a_profile_that_are_set_are_let_through_and_must_be_there() -> None:
    shape = SandboxSpec(LIMITS, LABELS).shape
    isolated = creation_body("agent-harness/python:1", shape, LABELS, VERSION, isolation=ISOLATION)
    name = container_name(LABELS)
    assert check_creation(isolated, name, VERSION, ISOLATION) == isolated
    for less in (
        body(),
        with_host(Runtime="runsc"),
        with_host(SecurityOpt=isolated["HostConfig"]["SecurityOpt"]),
    ):
        with pytest.raises(RefusedError, match=r"Runtime|SecurityOpt"):
            check_creation(less, name, VERSION, ISOLATION)


@pytest.mark.parametrize("runtime", ["runc", "runsc", "io.containerd.runc.v2", "", None, 1, "/tmp/mine"])
def test_no_runtime_but_the_one_that_is_set_is_let_through(runtime: Any) -> None:
    with pytest.raises(RefusedError, match=r"HostConfig\.Runtime"):
        check(with_host(Runtime=runtime))
    if runtime != "runsc":
        with pytest.raises(RefusedError, match=r"HostConfig\.Runtime"):
            check_creation(with_host(Runtime=runtime), container_name(LABELS), VERSION, Isolation("runsc"))


@given(spec=SPECS)
def test_whatever_the_product_creates_passes_and_reaches_the_engine_unchanged(spec: SandboxSpec) -> None:
    made = creation_body(
        "ghcr.io/some/agent:v1",
        spec.shape,
        spec.labels,
        VERSION,
        command=spec.command,
        environment=spec.environment,
    )
    sent = json.loads(json.dumps(made))

    assert check_creation(sent, container_name(spec.labels), VERSION) == sent


#: Everything that the SDK knows to put into a host config.
EVERYTHING = HostConfig(
    version=VERSION, binds=["/:/host"], port_bindings={80: 80}, lxc_conf={"a": "b"}, publish_all_ports=True, links={"a": "b"},
    privileged=True, dns=["8.8.8.8"], dns_search=["x"], volumes_from=["x"], cap_add=["SYS_ADMIN"], devices=["/dev/sda"],
    extra_hosts={"a": "1.2.3.4"}, pid_mode="host", cgroup_parent="/", cpu_quota=1, cpu_period=1, blkio_weight=10,
    group_add=["0"], userns_mode="host", uts_mode="host", sysctls={"net.x": "1"}, volume_driver="x", runtime="other",
    mounts=[Mount("/host", "/")], device_cgroup_rules=["a"], device_requests=[], init=True, isolation="x",
    storage_opt={"size": "1"}, cgroupns="host", auto_remove=True, oom_kill_disable=True, cpuset_cpus="0",
)  # fmt: skip


@pytest.mark.parametrize("key", sorted(set(EVERYTHING) - set(body()["HostConfig"])))
@pytest.mark.parametrize("spelled", [str, str.lower, str.upper])
def test_nothing_that_the_product_does_not_set_passes_in_any_spelling(key: str, spelled: Any) -> None:
    with pytest.raises(RefusedError, match=spelled(key)):
        check(with_host(**{spelled(key): EVERYTHING[key]}))


@pytest.mark.parametrize("empty", [None, [], {}, "", 0, False])
def test_a_key_that_does_not_belong_there_is_refused_whatever_its_value(empty: Any) -> None:
    with pytest.raises(RefusedError, match="Binds"):
        check(with_host(Binds=empty))


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a creation each object is."""
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


@given(
    where=st.sampled_from(list(paths(body()))),
    key=st.text(min_size=1) | st.sampled_from([key.swapcase() for key in EVERYTHING]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
)
def test_no_unknown_key_passes_anywhere(where: tuple[Any, ...], key: str, value: Any) -> None:
    sent = deepcopy(body())
    place: Any = sent
    for step in where:
        place = place[step]
    if key in place or (not where and key in ("Env", "Entrypoint")):
        return
    place[key] = value

    with pytest.raises(RefusedError):
        check(sent)


def other_type(value: Any) -> Any:
    """What a lax comparison takes for the same."""
    if isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, int) else [value]


@given(where=st.sampled_from(list(paths(body()))), data=st.data())
def test_nothing_can_be_left_out_and_no_type_exchanged(where: tuple[Any, ...], data: st.DataObject) -> None:
    sent = deepcopy(body())
    place: Any = sent
    for step in where:
        place = place[step]
    if not place:
        return
    # Without an environment of its own a container is as harmless as with an empty one.
    key = data.draw(st.sampled_from(sorted(place.keys() - {"Env"})))
    if data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = other_type(place[key])

    with pytest.raises(RefusedError):
        check(sent)


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (with_host(Memory=0), "Memory"),
        (with_host(Memory=-1, MemorySwap=-1), "Memory"),
        (with_host(Memory=True), "Memory"),
        (with_host(MemorySwap=-1), "MemorySwap"),
        (with_host(NanoCpus=0), "NanoCpus"),
        (with_host(PidsLimit=-1), "PidsLimit"),
        (with_host(PidsLimit=None), "PidsLimit"),
        (with_host(Tmpfs={"/tmp": "rw,exec,size=16777216"}), "Tmpfs"),
        (with_host(Tmpfs={"/tmp": "rw,noexec,nosuid,nodev,mode=1777,size=0"}), "tmpfs"),
        (with_host(Tmpfs=body()["HostConfig"]["Tmpfs"] | {"/etc": ""}), "/etc"),
        (with_host(NetworkMode="host"), "host"),
        (with_host(NetworkMode=f"container:{ID}"), "container:"),
        (with_host(NetworkMode="agent-harness_engine"), "NetworkMode"),
        (with_host(NetworkMode="bridge"), "NetworkDisabled"),
        (with_host(IpcMode="host"), "IpcMode"),
        (with_host(SecurityOpt=["no-new-privileges:true", "seccomp=unconfined"]), "SecurityOpt"),
        (with_host(SecurityOpt=[]), "SecurityOpt"),
        (with_host(CapDrop=[]), "CapDrop"),
        # Go's decoder folds these, too: a long s and a Kelvin sign.
        (with_host(Bindſ=["/:/host"]), "Bind"),
        (with_host(NetworKMode="host"), "Networ"),
        (with_host(ReadonlyRootfs=False), "ReadonlyRootfs"),
        (with_host(ReadonlyRootfs=1), "ReadonlyRootfs"),
        (with_host(RestartPolicy={"Name": "always"}), "RestartPolicy"),
        (with_host(LogConfig={"Type": "syslog", "Config": {"syslog-address": "udp://evil"}}), "LogConfig"),
        (with_host(Ulimits=[]), "Ulimits"),
        (body(User="0:0"), "User"),
        (body(User=""), "User"),
        (body(Image="../x"), "Image"),
        (body(Image=None), "Image"),
        (body(Labels={}), "labels"),
        (body(Labels=body()["Labels"] | {"com.docker.compose.project": "x"}), "com.docker"),
        (body(Volumes={"/data": {}}), "Volumes"),
        (body(Tty=True), "Tty"),
        (body(Cmd=["sh"]), "Cmd"),
        (body(NetworkingConfig={"EndpointsConfig": {}}), "NetworkingConfig"),
        (body(Healthcheck={"Test": ["CMD", "x"]}), "Healthcheck"),
        (body(Env={"A": "B"}), "Env"),
        (body(Env=["=x"]), "Env"),
        (body(Entrypoint="sh"), "Entrypoint"),
        (body(Entrypoint=[]), "Entrypoint"),
        (body(HostConfig=None), "HostConfig"),
        ([body()], "object"),
        (None, "object"),
    ],
)  # fmt: skip
def test_a_creation_that_is_not_the_products_is_refused_by_name(sent: Any, named: str) -> None:
    with pytest.raises(RefusedError, match=named):
        check(sent)


def test_a_name_that_does_not_fit_the_labels_is_refused() -> None:
    with pytest.raises(RefusedError, match="name"):
        check_creation(body(), container_name(SandboxLabels("ab" * 16, 8, 2)), VERSION)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"b": {"a": 1, "a": 1}}', "'a' is there twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1} {"a": 2}', "not JSON"),
        ('{"a": 1}x', "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "nested"),
        (b"\xff\xfe{\x00", "not JSON"),
    ],
)
def test_json_that_two_readers_could_understand_differently_is_refused(text: str | bytes, named: str) -> None:
    with pytest.raises(RefusedError, match=named):
        parse_json(text, "the body")


CONTAINER = f"/v1.41/containers/{ID}"
ATTACH = f"{CONTAINER}/attach?stream=1&stdin=1&stdout=1&stderr=1"
OURS = "filters=%7B%22label%22%3A+%5B%22io.agent-harness.store%3Dabc%22%5D%7D"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/_ping"),
        ("GET", "/version"),
        ("GET", "/v1.41/info"),
        ("GET", "/v1.47/version"),
        ("GET", "/v1.41/images/agent-harness/python:9c44eb50c07c/json"),
        ("GET", f"/v1.41/images/registry.example:5000/a/b:1%40sha256:{ID}/json"),
        ("GET", f"/v1.41/images/sha256:{ID}/json"),
        ("GET", f"/v1.41/containers/json?limit=-1&all=1&size=0&trunc_cmd=0&{OURS}"),
        ("POST", f"{CONTAINER}/start"),
        ("POST", f"{CONTAINER}/wait?condition=not-running"),
        ("POST", f"{CONTAINER}/kill?signal=SIGKILL"),
        ("GET", f"{CONTAINER}/json"),
        ("GET", f"{CONTAINER}/stats?stream=False&one-shot=True"),
        ("GET", f"{CONTAINER}/stats?stream=false&one-shot=true"),
        ("DELETE", "/v1.41/containers/harness-abababababab-7-2?v=True&link=False&force=True"),
    ],
)
def test_the_products_calls_pass(method: str, target: str) -> None:
    passed = check_call(request(method, target))

    assert passed.method == method
    assert passed.target(ID).partition("?")[0].startswith(target.partition("?")[0].partition("harness-a")[0])


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", f"{CONTAINER}/exec"),
        ("POST", f"/v1.41/exec/{ID}/start"),
        ("GET", f"{CONTAINER}/logs?stdout=1"),
        ("GET", f"{CONTAINER}/archive?path=/"),
        ("PUT", f"{CONTAINER}/archive?path=/"),
        ("GET", f"{CONTAINER}/export"),
        ("POST", f"{CONTAINER}/update"),
        ("POST", f"{CONTAINER}/rename?name=x"),
        ("POST", f"{CONTAINER}/stop"),
        ("POST", f"{CONTAINER}/start?detachKeys=x"),
        ("POST", "/v1.41/containers/prune"),
        ("POST", f"/v1.41/commit?container={ID}"),
        ("POST", "/v1.41/build"),
        ("POST", "/v1.41/images/create?fromImage=x"),
        ("POST", "/v1.41/images/load"),
        ("DELETE", "/v1.41/images/x"),
        ("GET", "/v1.41/images/get?names=x"),
        ("GET", "/v1.41/images/x/get"),
        ("GET", "/v1.41/volumes"),
        ("POST", "/v1.41/volumes/create"),
        ("GET", "/v1.41/networks"),
        ("POST", f"/v1.41/networks/{ID}/connect"),
        ("GET", "/v1.41/events"),
        ("GET", "/v1.41/system/df"),
        ("POST", "/v1.41/swarm/init"),
        ("GET", "/v1.41/secrets"),
        ("GET", "/v1.41/configs"),
        ("POST", "/v1.41/plugins/pull"),
        ("POST", "/v1.41/session"),
        ("POST", "/v1.41/auth"),
        ("POST", "/grpc"),
        # Spellings that an engine or a library between might take for something else.
        ("GET", f"//v1.41/containers/{ID}/json"),
        ("GET", f"/v1.41//containers/{ID}/json"),
        ("GET", f"/v1.41/../v1.41/containers/{ID}/json"),
        ("GET", f"/v1.41/./containers/{ID}/json"),
        ("GET", f"/v1.41/containers/{ID}/json/"),
        ("GET", f"/v1.41/Containers/{ID}/json"),
        ("GET", f"/v1.41/containers/{ID}%2fjson"),
        ("GET", f"/v1.41/containers/%2e%2e/{ID}/json"),
        ("GET", f"/v1.41/containers/{ID[:12]}/json"),
        ("GET", f"/v1.41/containers/{ID.upper()}/json"),
        ("GET", "/v1.41/containers/mongo/json"),
        ("GET", "/v1.41/images/../containers/x/json"),
        ("GET", f"/containers/{ID}/json"),
        ("GET", f"/v1.23/containers/{ID}/json"),
        ("GET", f"/v1.411/containers/{ID}/json"),
        ("HEAD", f"/v1.41/containers/{ID}/archive?path=/etc"),
        # Queries.
        ("GET", "/v1.41/containers/json"),
        ("GET", "/v1.41/containers/json?limit=-1&all=1&size=0&trunc_cmd=0"),
        ("GET", "/v1.41/containers/json?limit=-1&all=1&size=0&trunc_cmd=0&filters=%7B%7D"),
        ("GET", "/v1.41/containers/json?limit=-1&all=1&size=0&trunc_cmd=0&filters=%7B%22label%22%3A%5B%22x%22%5D%7D"),
        ("GET", f"/v1.41/containers/json?limit=-1&all=1&size=0&trunc_cmd=0&{OURS}&{OURS}"),
        ("GET", "/v1.41/images/json?only_ids=0&all=0&filters=%7B%22reference%22%3A%5B%22%2A%22%5D%7D"),
        ("POST", f"{CONTAINER}/kill?signal=SIGSTOP"),
        ("POST", f"{CONTAINER}/kill?signal=SIGKILL&signal=SIGSTOP"),
        ("POST", f"{CONTAINER}/kill?signal=SIGKILL;x=1"),
        ("POST", f"{CONTAINER}/kill"),
        ("DELETE", f"{CONTAINER}?v=True&link=True&force=True"),
        ("GET", f"{CONTAINER}/json?size=1"),
        ("POST", ATTACH),  # not as an upgrade
        ("POST", f"{CONTAINER}/attach/ws?stream=1&stdin=1&stdout=1&stderr=1"),
    ],
)  # fmt: skip
def test_other_calls_do_not_pass(method: str, target: str) -> None:
    with pytest.raises(RefusedError):
        check_call(request(method, target))


def test_an_upgrade_passes_for_an_attach_only() -> None:
    assert check_call(request("POST", ATTACH, upgrade=True)).is_upgrade

    with pytest.raises(RefusedError, match="upgrade"):
        check_call(request("GET", "/version", upgrade=True))


def test_a_body_passes_for_a_creation_only() -> None:
    with pytest.raises(RefusedError, match="body"):
        check_call(request("POST", f"{CONTAINER}/start", data=b'{"Binds": ["/:/host"]}'))


async def read(data: bytes) -> Request | None:
    reader = asyncio.StreamReader(limit=MAX_HEAD_BYTES)
    reader.feed_data(data)
    reader.feed_eof()
    return await read_request(reader)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", 400),
        (b"POST /x HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 0\r\n\r\nabc", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\nabc", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: 03\r\n\r\nabc", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", 400),
        (b"POST /x HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", 413),
        (b"POST /x HTTP/1.1\r\nContent-Encoding: gzip\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nA: b\nContent-Length: 3\r\n\r\nabc", 400),
        (b"GET /x HTTP/1.1\r\nA: b\x00\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nUpgrade: h2c\r\n\r\n", 400),
        (b"GET http://docker/x HTTP/1.1\r\n\r\n", 400),
        (b"GET  /x HTTP/1.1\r\n\r\n", 400),
        (b"GET /x\x0b HTTP/1.1\r\n\r\n", 400),
        (b"GET /x HTTP/2.0\r\n\r\n", 400),
        (b"get /x HTTP/1.1\r\n\r\n", 400),
        (b"GET /x\\y HTTP/1.1\r\n\r\n", 400),
        (b"GET /x HTTP/1.1 HTTP/1.1\r\n\r\n", 400),
        (b"\r\nGET /x HTTP/1.1\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\n", 400),
        (b"GET /x HTTP/1.1\r\nA: " + b"b" * 20_000 + b"\r\n\r\n", 431),
    ],
)  # fmt: skip
async def test_a_request_that_two_readers_could_understand_differently_is_refused(
    head: bytes, status: int
) -> None:
    with pytest.raises(RefusedError) as caught:
        await read(head)

    assert caught.value.status == status


@given(data=st.binary() | st.binary().map(lambda rest: b"POST /x HTTP/1.1\r\n" + rest + b"\r\n\r\n"))
def test_whatever_bytes_come_in_they_are_a_request_or_refused(data: bytes) -> None:
    with contextlib.suppress(RefusedError):
        asyncio.run(read(data))


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from([*body(), *body()["HostConfig"]]), inner)
        ),
    )
)
def test_whatever_json_comes_in_it_is_refused(value: Any) -> None:
    with pytest.raises(RefusedError):
        check(value)


async def test_a_plain_request_is_read_to_the_end_of_its_body_and_no_further() -> None:
    read_in = await read(
        b"POST /x?a=b HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\n\r\nabcGET /info HTTP/1.1\r\n\r\n"
    )

    assert read_in == Request("POST", "/x", "a=b", "1.1", is_upgrade=False, body=b"abc")


async def test_a_client_that_leaves_without_a_request_is_no_refusal() -> None:
    assert await read(b"") is None


def relay(**changes: Any) -> dict[str, Any]:
    return relay_body("agent-harness/python:1", LABELS, ID, VERSION) | changes


def relay_with_host(**changes: Any) -> dict[str, Any]:
    return relay(HostConfig=relay()["HostConfig"] | changes)


def test_the_relay_of_an_attempt_passes_and_names_the_container_that_it_joins() -> None:
    made = check_call(
        request(
            "POST",
            f"/v{VERSION}/containers/create?name={relay_name(LABELS)}",
            data=json.dumps(relay()).encode(),
        )
    )

    assert json.loads(made.body) == relay()
    assert made.joined == ID
    by_name = check_call(
        request("DELETE", f"/v{VERSION}/containers/{relay_name(LABELS)}?v=True&link=False&force=True")
    )
    assert (by_name.container, by_name.joined) == (relay_name(LABELS), None)


@pytest.mark.parametrize(
    ("sent", "name", "named"),
    [
        (relay(), container_name(LABELS), "relay"),
        (relay(), relay_name(SandboxLabels(LABELS.store_id, 7, 3)), "relay"),
        (body(), relay_name(LABELS), "name"),
        (relay(Labels=body()["Labels"]), relay_name(LABELS), "role"),
        (relay(Labels=relay()["Labels"] | {"io.agent-harness.role": "other"}), relay_name(LABELS), "role"),
        (relay(Entrypoint=["sh"]), relay_name(LABELS), "Entrypoint"),
        (relay(User="10001:10001"), relay_name(LABELS), "User"),
        (relay(Env=["PYTHONPATH=/tmp"]), relay_name(LABELS), "Env"),
        (relay(Image="../x"), relay_name(LABELS), "Image"),
        (relay_with_host(Memory=1 << 40), relay_name(LABELS), "Memory"),
        (relay_with_host(Binds=["/:/host"]), relay_name(LABELS), "Binds"),
        (relay_with_host(PidMode=f"container:{ID}"), relay_name(LABELS), "PidMode"),
        (relay_with_host(NetworkMode="host"), relay_name(LABELS), "NetworkMode"),
        (relay_with_host(NetworkMode="container:somebodys"), relay_name(LABELS), "NetworkMode"),
        (relay_with_host(NetworkMode=f"container:{ID}/x"), relay_name(LABELS), "NetworkMode"),
    ],
)  # fmt: skip
def test_what_is_almost_a_relay_is_refused(sent: Any, name: str, named: str) -> None:
    with pytest.raises(RefusedError, match=named):
        check_creation(sent, name, VERSION)
