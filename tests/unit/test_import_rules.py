"""Who may import whom: calls run one way, and what is shared knows nobody."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = {"inventory_svc", "balance_svc", "purchase_svc", "gateway"}
DRIVERS = {"psycopg", "psycopg_pool", "redis", "aio_pika", "aiormq", "mesh.postgres", "mesh.redis_pool", "mesh.rabbit"}
STUBS = {name: f"flashsale.{name.removesuffix('_svc')}" for name in ("inventory_svc", "balance_svc", "purchase_svc")}

#: What each part must not import, by prefix.
FORBIDDEN: dict[str, set[str]] = {
    "mesh": SERVICES | set(STUBS.values()) | {"stack", "bench", "flashsale.settlement"},
    "inventory_svc": (SERVICES - {"inventory_svc"}) | {STUBS["balance_svc"], STUBS["purchase_svc"], "stack", "bench"},
    "balance_svc": (SERVICES - {"balance_svc"}) | {STUBS["inventory_svc"], STUBS["purchase_svc"], "stack", "bench"},
    "purchase_svc": (SERVICES - {"purchase_svc"}) | {"stack", "bench"},
    "client": SERVICES | {"mesh", "stack", "bench", "flashsale.settlement"},
    "gateway": (SERVICES - {"gateway"}) | DRIVERS | {"stack", "bench", "flashsale.settlement"},
}


def imported(path: Path) -> set[str]:
    """Full dotted names of everything a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_a_part_imports_only_what_it_may_know(part: str) -> None:
    files = list((ROOT / part).rglob("*.py"))
    assert files
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path)
        for prefix in FORBIDDEN[part]
        if name == prefix or name.startswith(prefix + ".")
    ]
    assert broken == []
