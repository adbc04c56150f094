"""Every call of docs/grpc-examples.md, as it stands there, on the whole system."""

import asyncio
import json
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flashsale.balance.v1 import balance_service_pb2 as balance
from flashsale.inventory.v1 import inventory_service_pb2 as inventory
from flashsale.purchase.v1 import purchase_service_pb2 as purchase

from tests.support.servers import MeshStack

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "grpc-examples.md").read_text()
BUF = Path(sys.executable).with_name("buf")
CALL = re.compile(
    r"```sh\n(?P<grpcurl>grpcurl [^`]*?)\n(?P<buf>buf curl [^`]*?)\n```\n\n```json\n(?P<answer>[^`]*?)\n```"
)
NAME = re.compile(r"<(\w+)>")
ADDRESSES = {
    "localhost:7051": "INVENTORY_LISTEN",
    "localhost:7052": "BALANCE_LISTEN",
    "localhost:7053": "PURCHASE_LISTEN",
}


def method_of(command: str) -> str:
    """Such as "flashsale.balance.v1.BalanceService/Deposit"."""
    return "/".join(command.rsplit("/", 2)[1:])


def test_every_call_of_the_contract_has_an_example() -> None:
    calls = list(CALL.finditer(DOCUMENT))
    methods = {
        f"{service.full_name}/{method.name}"
        for contract in (inventory, balance, purchase)
        for service in contract.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert {method_of(call["buf"]) for call in calls} == methods
    # None that stands in the document is left out here.
    assert len(calls) == DOCUMENT.count("\n    localhost:") == DOCUMENT.count("```json\n")


def test_both_tools_are_told_the_same() -> None:
    for call in CALL.finditer(DOCUMENT):
        told = [re.search(r"peer (\S+ \S+)\).*?-d ('.*?') \\", call[tool]) for tool in ("grpcurl", "buf")]
        assert all(told), method_of(call["buf"])
        assert told[0].groups() == told[1].groups()  # type: ignore[union-attr]
        assert call["grpcurl"].endswith(call["buf"].partition("localhost")[2].partition("/")[2])


class Shell:
    """Runs the document's commands with a tool, on one stack."""

    def __init__(self, stack: MeshStack) -> None:
        block = re.search(r"```sh\n(C=.*?)\n```", DOCUMENT, re.S)
        assert block is not None
        folder = Path(stack.environment["STACK_DIR"]) / "certificates"
        assert (folder / "ca.pem").exists(), "the stack was to have certificates"
        self._before = block[1].replace("C=.run/certificates", f"C={folder}") + f'\nbuf() {{ "{BUF}" "$@"; }}\n'
        self._addresses = {shown: stack.environment[name] for shown, name in ADDRESSES.items()}

    async def run(self, command: str, cache: Path) -> tuple[int, str, str]:
        """Exit code and output."""
        for shown, address in self._addresses.items():
            command = command.replace(shown, address)
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            self._before + command,
            env={"HOME": str(cache), "PATH": "/usr/local/bin:/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), err.decode()


def documents(text: str) -> Iterator[Any]:
    """The JSON documents that a tool has printed, one after the other."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:].lstrip()


def in_json_names(value: Any) -> Any:
    """An answer whose fields are named as in JSON (userId); older grpcurls name them as the contract does (user_id)."""
    if isinstance(value, dict):
        return {
            re.sub(r"_(\w)", lambda found: found[1].upper(), key): in_json_names(each) for key, each in value.items()
        }
    return [in_json_names(each) for each in value] if isinstance(value, list) else value


def fits(shown: Any, answer: Any, names: dict[str, str]) -> bool:
    """Whether an answer is as shown. Values for names that were not known yet are taken from it."""
    if shown == "...":
        return True
    if isinstance(shown, dict):
        return isinstance(answer, dict) and all(key in answer and fits(shown[key], answer[key], names) for key in shown)
    if isinstance(shown, list):
        return isinstance(answer, list) and list_fits(shown, answer, names)
    if isinstance(shown, str):
        name = NAME.fullmatch(shown)
        if name and name[1] not in names and isinstance(answer, str) and answer:
            names[name[1]] = answer
        return bool(NAME.sub(lambda found: names.get(found[1], found[0]), shown) == answer)
    return bool(shown == answer and type(shown) is type(answer))


def list_fits(shown: list[Any], answer: list[Any], names: dict[str, str]) -> bool:
    """The same of lists, in which "..." stands for any number of elements."""
    if not shown:
        return not answer
    if shown[0] == "...":
        return any(list_fits(shown[1:], answer[start:], names) for start in range(len(answer) + 1))
    return bool(answer) and fits(shown[0], answer[0], names) and list_fits(shown[1:], answer[1:], names)


@pytest.fixture(scope="module")
def stack(replicated_stack: MeshStack) -> MeshStack:
    return replicated_stack


@pytest.mark.timeout(400)
@pytest.mark.parametrize("tool", ["buf", "grpcurl"])
async def test_every_example_does_what_is_shown(stack: MeshStack, tool: str, tmp_path: Path) -> None:
    if tool == "grpcurl" and shutil.which("grpcurl") is None:
        pytest.skip("grpcurl is not installed")
    shell = Shell(stack)
    names = {"run": f"ex{uuid.uuid4().hex[:6]}", **{name: str(uuid.uuid4()) for name in ("dave", "erin")}}
    names |= {f"hold{number}": str(uuid.uuid4()) for number in (1, 2, 3)}
    for call in CALL.finditer(DOCUMENT):
        asked = NAME.sub(lambda found: names[found[1]], call[tool])
        code, out, err = await shell.run(asked, tmp_path)
        answers, shown = in_json_names(list(documents(out))), json.loads(call["answer"])
        endless = re.search(r"--timeout|-max-time", asked) is not None
        assert (code != 0) == endless, f"{asked}\n{err}"
        if endless:
            assert re.search("deadline", err, re.IGNORECASE), err
        if not isinstance(shown, list):
            (answers,) = answers
        assert fits(shown, answers, names), f"{asked}\n{out}"


async def test_reflection_lists_the_services(stack: MeshStack, tmp_path: Path) -> None:
    block = re.search(r"```sh\ngrpcurl [^\n]* list\n(buf curl [^\n]*)\n```", DOCUMENT)
    assert block is not None
    code, out, err = await Shell(stack).run(block[1], tmp_path)
    assert code == 0, err
    assert {"flashsale.inventory.v1.InventoryService", "grpc.health.v1.Health"} <= set(out.split())


def test_the_matcher_can_fail() -> None:
    names: dict[str, str] = {}
    assert fits({"id": "<a>"}, {"id": "x", "more": 1}, names)
    assert names == {"a": "x"}
    assert not fits({"id": "<a>"}, {"id": "y"}, names)
    assert not fits({"n": 1}, {}, names)
    assert not fits([1], [1, 2], names)
    assert fits(["...", 2, "..."], [1, 2, 3], names)
    assert not fits(["...", 2], [2, 3], names)
