"""Writes docs/api.md from the comments of protos/, or with --check tells whether it is current.

Own code because protoc-gen-doc is a Go program that is on no package index, and its templates are as long as this.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
DOCUMENT = ROOT / "docs" / "api.md"
EXAMPLES = "grpc-examples.md"
#: Not for others: what services put into the queue for themselves.
_PRIVATE = ("flashsale.settlement.v1",)

#: Numbers of the fields of FileDescriptorProto, DescriptorProto and so on, of which a location's path is made.
_MESSAGE, _ENUM, _SERVICE, _FIELD, _VALUE, _METHOD = 4, 5, 6, 2, 2, 2

_TAG = re.compile(r"<(?=[a-z/])", re.IGNORECASE)

_HEAD = """# API

Every call of the three services, with every field, generated from [protos/](../protos/) by `make proto`; each call is
shown at work in [grpc-examples.md](grpc-examples.md). What an error looks like is told at
[ErrorReason](#errorreason).
"""


def describe(protos: Path) -> list[pb.FileDescriptorProto]:
    """The contract of a folder, comments included. Raises CalledProcessError if it does not compile."""
    names = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    with tempfile.NamedTemporaryFile() as image:
        protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(protos), "--include_source_info"]
        subprocess.run([*protoc, f"--descriptor_set_out={image.name}", *names], check=True)
        files = pb.FileDescriptorSet.FromString(Path(image.name).read_bytes()).file
    return [each for each in files if each.package not in _PRIVATE]


class _Comments:
    """The comments of one file, by the path of what they are about."""

    def __init__(self, file: pb.FileDescriptorProto) -> None:
        self._texts = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}

    def lines(self, *path: int) -> list[str]:
        """The comment as its author broke it into lines; an empty one between paragraphs."""
        text = self._texts.get(path, "").strip()
        # Markdown takes <id> for HTML, and shows nothing.
        return [_TAG.sub(r"\<", line.strip()) for line in text.splitlines()]

    def cell(self, *path: int) -> str:
        """The same in one line, for a cell of a table too."""
        return " ".join(self.lines(*path)).replace("|", "\\|")


def _short(type_name: str) -> str:
    return type_name.rpartition(".")[2]


def _type(field: pb.FieldDescriptorProto, of_calls: Mapping[str, str]) -> str:
    if field.type_name:
        short = _short(field.type_name)
        known = field.type_name.startswith(".flashsale.")
        anchor = of_calls.get(short, short).lower()
        text = f"[{short}](#{anchor})" if known else field.type_name.removeprefix(".")
    else:
        text = pb.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"repeated {text}" if field.label == pb.FieldDescriptorProto.LABEL_REPEATED else text


def _of_calls(file: pb.FileDescriptorProto) -> dict[str, str]:
    """The messages that are told of with their calls, and these calls."""
    return {
        _short(name): method.name
        for service in file.service
        for method in service.method
        for name in (method.input_type, method.output_type)
    }


def _fields(file: pb.FileDescriptorProto, comments: _Comments, number: int) -> Iterator[str]:
    message = file.message_type[number]
    if not message.field:
        return
    yield from ("| field | type | |", "|---|---|---|")
    of_calls = _of_calls(file)
    for place, field in enumerate(message.field):
        yield f"| `{field.name}` | {_type(field, of_calls)} | {comments.cell(_MESSAGE, number, _FIELD, place)} |"
    yield ""


def _service(file: pb.FileDescriptorProto, comments: _Comments) -> Iterator[str]:
    messages = {f".{file.package}.{each.name}": number for number, each in enumerate(file.message_type)}
    for number, service in enumerate(file.service):
        yield from (f"## {service.name}", "", f"`{file.package}.{service.name}`", "")
        yield from (*comments.lines(_SERVICE, number), "")
        for place, method in enumerate(service.method):
            stream = "stream of " if method.server_streaming else ""
            yield from (f"### {method.name}", "")
            yield from (*comments.lines(_SERVICE, number, _METHOD, place), "")
            yield from (f"[Example]({EXAMPLES}#{method.name.lower()})", "")
            for lead, type_name in (("Asked: ", method.input_type), (f"Answered: {stream}", method.output_type)):
                at = messages[type_name]
                yield from (f"{lead}`{_short(type_name)}`. {comments.cell(_MESSAGE, at)}", "")
                yield from _fields(file, comments, at)


def _types(file: pb.FileDescriptorProto, comments: _Comments) -> Iterator[str]:
    of_calls = _of_calls(file)
    for number, message in enumerate(file.message_type):
        if message.name in of_calls:
            continue
        yield from (f"### {message.name}", "", *comments.lines(_MESSAGE, number), "")
        yield from _fields(file, comments, number)
    for number, enum in enumerate(file.enum_type):
        yield from (f"### {enum.name}", "", *comments.lines(_ENUM, number), "")
        yield from ("| value | number | |", "|---|---|---|")
        for place, value in enumerate(enum.value):
            yield f"| `{value.name}` | {value.number} | {comments.cell(_ENUM, number, _VALUE, place)} |"
        yield ""


def write(files: Iterable[pb.FileDescriptorProto]) -> str:
    """The whole document: services with their calls first, then what else they are made of."""
    files = list(files)
    lines = [_HEAD]
    for file in files:
        if file.service:
            lines += _service(file, _Comments(file))
    types: dict[str, list[str]] = {}
    for file in files:
        types.setdefault(file.package, []).extend(_types(file, _Comments(file)))
    for package, described in types.items():
        if described:
            lines += [f"## Types of {package}", "", *described]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Entry point; exit code 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if docs/api.md is not current")
    text = write(describe(PROTOS))
    if not parser.parse_args().check:
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        sys.stderr.write("docs/api.md is not what protos/ says: run make proto\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
