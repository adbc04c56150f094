"""The benchmarks see the system only from outside."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = ("inventory_svc", "balance_svc", "purchase_svc", "psycopg", "redis", "aio_pika", "tests")


def test_bench_imports_no_service_and_no_driver() -> None:
    names = {
        (path.name, name)
        for path in (ROOT / "bench").rglob("*.py")
        # Peers stand beside the mesh; and what servers say of themselves, no service can be asked.
        if "peers" not in path.parts and path.name != "server_figures.py"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names
    assert [pair for pair in names if pair[1].split(".")[0] in FORBIDDEN] == []
    gateway = {name for _, name in names if name.split(".")[0] == "gateway"}
    assert gateway == {"gateway.local_tokens"}
