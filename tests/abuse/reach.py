"""Agents with a list of places to reach, that try to reach others. The API server of the arena would be one."""

from __future__ import annotations

from tests.abuse.case import Case, Seen, attempts, nothing_got

from harness.egress.log import MAX_WRITTEN
from harness.models import Reason

_GROUP = "network policy"
#: Metadata of clouds, this machine by a name, and a name that there is not; each listed, as a careless owner may.
_LISTED = (
    "169.254.169.254:80",
    "[fd00:ec2::254]:80",
    "[::ffff:169.254.169.254]:80",
    "100.100.100.200:80",
    "127.0.0.1:8000",
    "localhost:8000",
    "172.17.0.1:8000",
    "allowed.invalid:80",
)


def _asks(attack: str, requests: dict[str, str]) -> Case:
    tries = {name: f"through_relay({text.encode('latin-1')!r})" for name, text in requests.items()}
    return Case(
        _GROUP, attack, "each is refused", attempts(tries), nothing_got, {"timeout_seconds": 30}, _LISTED
    )


def _get(target: str) -> str:
    return f"GET {target} HTTP/1.1\r\n\r\n"


def _connect(target: str) -> str:
    return f"CONNECT {target} HTTP/1.1\r\n\r\n"


def _goes_on(seen: Seen) -> str:
    seen.require(seen.task.reason is Reason.COMPLETED, "the run did not end well")
    answer = seen.stdout.splitlines()[-1]
    seen.require(answer == "403 after it", f"the relay did not answer any more: {answer}")
    told = [line for line in seen.stderr.splitlines() if line.startswith("[harness] egress")]
    seen.require(len(told) <= 4 * (MAX_WRITTEN + 1), f"{len(told)} decisions were written down")
    return f"{seen.stdout.splitlines()[0]}; then served as before; lines with the task: {len(told)}"


_FLOOD = """
import socket, time, urllib.error, urllib.request
{attack}
time.sleep(1)
try:
    urllib.request.urlopen('http://other.invalid/', timeout=30)
except urllib.error.HTTPError as error:
    print(error.code, 'after it')
"""


def _floods(attack: str, expected: str, code: str) -> Case:
    limits = {"timeout_seconds": 50, "max_processes": 64}
    return Case(_GROUP, attack, expected, _FLOOD.format(attack=code), _goes_on, limits, _LISTED)


CASES = (
    _asks(
        "with a list: metadata, this machine and its neighbours, listed by mistake",
        {
            "metadata over IPv4": _get("http://169.254.169.254/latest/meta-data/"),
            "metadata over IPv6": _get("http://[fd00:ec2::254]/latest/meta-data/"),
            "metadata, IPv4 in IPv6": _get("http://[::ffff:a9fe:a9fe]/"),
            "metadata of another cloud": _connect("100.100.100.200:80"),
            "the API server": _get("http://127.0.0.1:8000/api/agents"),
            "the API server by name": _connect("localhost:8000"),
            "the bridge": _connect("172.17.0.1:8000"),
        },
    ),
    _asks(
        "with a list: places that are not on it, in spellings that look alike",
        {
            "another host": _get("http://example.com/"),
            "another port": _connect("allowed.invalid:443"),
            "a name below": _connect("a.allowed.invalid:80"),
            "a name before": _connect("allowed.invalid.example.com:80"),
            "a user name": _get("http://allowed.invalid@example.com/"),
            "a port before a user name": _get("http://allowed.invalid:80@example.com/"),
            "a backslash": _get("http://example.com\\@allowed.invalid/"),
            "a decimal address": _get("http://2130706433:8000/"),
            "an octal address": _get("http://0177.0.0.1:8000/"),
            "a hexadecimal address": _get("http://0x7f000001:8000/"),
            "a short address": _get("http://127.1:8000/"),
            "a zone": _get("http://[fe80::1%25lo]:8000/"),
            "a NUL byte": _connect("allowed.invalid\0.example.com:80"),
        },
    ),
    _asks(
        "with a list: a request within a request",
        {
            "CR and LF in a CONNECT": "CONNECT allowed.invalid:80\r\nHost: x HTTP/1.1\r\n\r\n",
            "a bare LF": "CONNECT allowed.invalid:80\nX: y HTTP/1.1\r\n\r\n",
            "a bare CR in a header": "GET http://allowed.invalid/ HTTP/1.1\r\nX: y\rHost: z\r\n\r\n",
            "two lengths": "POST http://allowed.invalid/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "a length and chunks": "POST http://allowed.invalid/ HTTP/1.1\r\nContent-Length: 1\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "a folded header": "GET http://allowed.invalid/ HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "no proxy request": "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
            "another protocol": "SSH-2.0-x\r\n\r\n",
            "an endless head": "GET http://allowed.invalid/ HTTP/1.1\r\nX: " + "x" * 20_000,
        },
    ),
    Case(
        _GROUP,
        "with a list: around the relay, and the relay itself",
        "each is refused",
        attempts(
            {
                "the bridge": "connect(socket.AF_INET, ('172.17.0.1', 22))",
                "metadata": "connect(socket.AF_INET, ('169.254.169.254', 80))",
                "the API server": "connect(socket.AF_INET, ('127.0.0.1', 8000))",
                "the Internet": "connect(socket.AF_INET, ('1.1.1.1', 443))",
                "a datagram": "connect(socket.AF_INET, ('8.8.8.8', 53), socket.SOCK_DGRAM)",
                "DNS": "socket.getaddrinfo('example.com', 80)",
                "its port": "socket.create_server(('127.0.0.1', 3128))",
                "its port on every address": "socket.create_server(('0.0.0.0', 3128), reuse_port=True)",
                "its process": "found(name for name in os.listdir('/proc') if name.isdigit()"
                " and lines(f'/proc/{name}/cmdline', 'egress_relay'))",
                "a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
            }
        ),
        nothing_got,
        {"timeout_seconds": 30},
        _LISTED,
    ),
    _floods(
        "with a list: open connections and hold them",
        "no more than its share, and the next is served",
        """
held = []
for _ in range(900):
    one = socket.socket()
    one.setblocking(False)
    try:
        one.connect(('127.0.0.1', 3128))
    except BlockingIOError:
        pass
    held.append(one)
print('900 held')
time.sleep(2)
for one in held:
    one.close()
""",
    ),
    _floods(
        "with a list: ask for what is refused, without a pause",
        "each is refused, some are written down",
        """
count, end = 0, time.monotonic() + 4
while time.monotonic() < end:
    with socket.create_connection(('127.0.0.1', 3128), timeout=30) as one:
        one.sendall(b'CONNECT \\x1b[2J\\n[harness] egress allowed: x HTTP/1.1\\r\\n\\r\\n' if count % 2 else
                    b'CONNECT example.com:443 HTTP/1.1\\r\\n\\r\\n')
        one.recv(100)
    count += 1
print('many asked')
""",
    ),
    _floods(
        "with a list: open and reset connections, without a pause",
        "its runner's other work goes on",
        """
import struct
end = time.monotonic() + 4
while time.monotonic() < end:
    one = socket.create_connection(('127.0.0.1', 3128), timeout=30)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    one.send(b'CONNECT allowed.invalid:80 HTTP/1.1\\r\\n\\r\\n')
    one.close()
print('many reset')
""",
    ),
)
