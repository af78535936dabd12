"""What a sandbox may reach of the network: the rules, the proxy that holds to them, and its connection to the relay.

A sandbox has no network. Beside it runs a relay of ours, which shares its loopback and nothing else: it takes the agent's
connections at `PROXY_PORT` and carries them over its own stdin and stdout to the runner. The runner reads what is asked
for, decides, resolves names itself and connects. So an agent has nothing to go around: there is no other way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Where the relay listens, on 127.0.0.1 of a sandbox.
PROXY_PORT = 3128
PROXY_URL = f"http://127.0.0.1:{PROXY_PORT}"

#: How programs learn of the proxy. Both spellings: curl reads only ``http_proxy``, others only capitals.
PROXY_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        name: value
        for variable, value in (
            ("HTTP_PROXY", PROXY_URL),
            ("HTTPS_PROXY", PROXY_URL),
            ("ALL_PROXY", PROXY_URL),
            # What the agent itself starts there.
            ("NO_PROXY", "localhost,127.0.0.1,::1"),
        )
        for name in (variable, variable.lower())
    }
)
