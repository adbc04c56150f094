"""The operator's commands: reads the command line and the environment; exit code 0, 1 or 2.

0: all that was asked for is done; 1: something is not, or a server is away; 2: a wrong command or setting.
"""

import argparse
import logging
import sys
import uuid
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NoReturn

import psycopg
import structlog
import uvloop
from flashsale.common.v1.error_reason_pb2 import ErrorReason

from mesh import migrations
from mesh.errors import DomainError
from mesh.settings import SettingsError, read_settings
from mesh.transport import read_transport
from mesh.validation import canonical_uuid
from purchase_svc import operations
from purchase_svc.purchase_book import MIGRATIONS_FOLDER
from purchase_svc.settlement_queue import DEAD_LENGTH_MAX
from purchase_svc.settlement_settings import PREFIX, SettlementSettings

_IDS_MAX = 500

_Work = Callable[[SettlementSettings, operations.Say], Coroutine[Any, Any, bool]]


def _purchase_id(text: str) -> uuid.UUID:
    canonical = canonical_uuid(text)
    if canonical is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no purchase id, which is a UUID of 36 characters")
    return uuid.UUID(canonical)


def _most(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) >= 1 and len(text) < 9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of dead letters from 1 on")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong about a call; the usage is for who asks with --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m purchase_svc", description="What an operator does.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("dead-letters", help="list the messages that no worker can settle; they stay")
    replay = commands.add_parser("replay-dead-letters", help="send them to their partitions again, each once")
    replay.add_argument("--most", type=_most, default=DEAD_LENGTH_MAX, help="the oldest so many; default: all")
    commands.add_parser("parked", help="list the purchases whose attempts are exhausted")
    again = commands.add_parser("replay-parked", help="let the workers try parked purchases again")
    again.add_argument("ids", nargs="*", type=_purchase_id, metavar="ID", help="default: all")
    fail = commands.add_parser("fail-parked", help="end parked purchases: hold released, units given back, FAILED")
    fail.add_argument("ids", nargs="+", type=_purchase_id, metavar="ID")
    return parser


def _work(arguments: argparse.Namespace) -> _Work:
    # The same id twice is meant once.
    ids = list(dict.fromkeys(getattr(arguments, "ids", ())))
    transport = read_transport()
    commands: dict[str, _Work] = {
        "dead-letters": operations.show_dead_letters,
        "replay-dead-letters": partial(operations.replay_dead_letters, most=getattr(arguments, "most", 0)),
        "parked": operations.show_parked,
        "replay-parked": partial(operations.replay_parked, ids=ids, transport=transport),
        "fail-parked": partial(operations.fail_parked, ids=ids, transport=transport),
    }
    return commands[arguments.command]


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _complain(line: str) -> None:
    sys.stderr.write(line + "\n")


async def _run(work: _Work) -> bool:
    settings = read_settings(SettlementSettings, PREFIX)
    try:
        await migrations.require_migrated(settings.database_url, MIGRATIONS_FOLDER)
    except psycopg.OperationalError as error:
        raise DomainError(ErrorReason.ERROR_REASON_UNAVAILABLE, "the database is away") from error
    return await work(settings, _say)


def main(arguments: Sequence[str]) -> int:
    """Carries out one command; the exit code."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if len(getattr(parsed, "ids", ())) > _IDS_MAX:
        parser.error(f"at most {_IDS_MAX} purchases at once")
    # What goes wrong is told in one line by whoever asked for it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    try:
        return 0 if uvloop.run(_run(_work(parsed))) else 1
    except SettingsError as error:
        _complain(f"settings: {error}")
        return 2
    except DomainError as error:
        _complain(f"{error.reason_name}: {error.message}")
        return 1
    except KeyboardInterrupt:
        _complain("broken off; what was not done stays as it was")
        return 1
