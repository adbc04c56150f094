"""wrk, a load generator in C: for what answers faster than a Python client can ask."""

import asyncio
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.load.process import LoadError

_SCRIPT = """
wrk.method = {method!r}
wrk.body = {body!r}
local requests, turn = {{}}, 0
init = function()
{requests}
end
request = function()
  turn = turn % #requests + 1
  return requests[turn]
end
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d %d %d %d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), summary.errors.status, summary.errors.connect + summary.errors.read,
    summary.errors.write + summary.errors.timeout))
end
"""


@dataclass(frozen=True)
class WrkResult:
    """What wrk saw."""

    requests: int
    wall_s: float
    p50_ms: float
    p99_ms: float
    #: Answers with a status of 400 or more.
    refused: int
    #: Requests without an answer.
    broken: int

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return self.requests / self.wall_s


async def wrk(
    url: str, *, method: str, headers: Sequence[Mapping[str, str]], body: str, connections: int, seconds: int
) -> WrkResult:
    """Sends requests over all connections for so many seconds, with each set of headers in turn. Raises LoadError."""
    lines = "\n".join(_request_line(each) for each in headers)
    with tempfile.TemporaryDirectory(prefix="flashsale-wrk-") as folder:
        script = Path(folder) / "request.lua"
        # The headers hold a token: the folder is its owner's alone.
        await asyncio.to_thread(script.write_text, _SCRIPT.format(method=method, body=body, requests=lines))
        process = await asyncio.create_subprocess_exec(
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout=5s",
            f"-s{script}",
            url,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
    found = re.search(r"^RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$", output, re.M)
    if found is None:
        raise LoadError(f"wrk said: {output.strip()[-300:]}")
    requests, wall_us, p50_us, p99_us, refused, broken, late = map(int, found.groups())
    return WrkResult(requests, wall_us / 1e6, p50_us / 1000, p99_us / 1000, refused, broken + late)


def _request_line(headers: Mapping[str, str]) -> str:
    entries = ", ".join(f"[{name!r}] = {value!r}" for name, value in headers.items())
    return f"  requests[#requests + 1] = wrk.format(nil, nil, {{{entries}}})"
