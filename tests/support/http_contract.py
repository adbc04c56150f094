"""The HTTP contract held against a gateway that runs, by schemathesis."""

import asyncio
import os
import sys
from pathlib import Path

#: What is known of operations that no schema can say.
_CONFIG = """
seed = 1
request-timeout = 10
continue-on-failure = true
warnings = false

[auth.openapi.bearer]
bearer = "${CONTRACT_TOKEN}"

[generation]
max-examples = %(examples)d
deterministic = true

# All of them; named on the command line they would be on for the operations below too.
[checks]
enabled = true

%(parameters)s

# Steps that follow each other meet states of things, of which no schema tells.
[phases.stateful.checks]
positive_data_acceptance.enabled = false

# No schema says which page tokens there are, that a sale's total never shrinks, which characters are printable, or that
# a sale closes after it has opened.
[[operations]]
include-operation-id = [
    "listPurchases", "getStatement", "listChanges", "listParked", "raiseTotal", "scheduleSale", "addEligibleUsers",
]
checks.positive_data_acceptance.enabled = false
"""


async def check(url: str, token: str, folder: Path, *, examples: int, parameters: dict[str, str] | None = None) -> str:
    """Sends requests of all kinds, right and wrong, as the contract at ``url`` describes them, and judges every answer
    by it; empty if all were as promised, otherwise what was not. ``parameters`` are values for parameters by
    place and name: "path.sale_id"."""
    given = "".join(f'"{name}" = "{value}"\n' for name, value in (parameters or {}).items())
    config = folder / "schemathesis.toml"
    config.write_text(_CONFIG % {"examples": examples, "parameters": f"[parameters]\n{given}" if given else ""})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "--no-color"),
        *("run", f"{url}/openapi.json", "--report", "junit", "--report-dir", str(folder)),
        # The token by the environment: arguments are everybody's to read.
        env={**os.environ, "CONTRACT_TOKEN": token, "COLUMNS": "160"},
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(400):
        told, _ = await process.communicate()
    text = told.decode(errors="replace")
    assert "Test cases" in text or "passed" in text, f"schemathesis has not run:\n{text}"
    return "" if process.returncode == 0 else text
