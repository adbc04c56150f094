"""The stack's commands: `python -m stack up|down|status|certs|logs|clean|env`. The Makefile's targets call these."""

from __future__ import annotations

import argparse
import os
import sys

from stack import environment
from stack.errors import StackError
from stack.folder import StackFolder, locate
from stack.ports import Ports
from stack.replicas import Replicas
from stack.stack import Stack, stack_as_started


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _stack(folder: StackFolder) -> Stack:
    """The stack as this environment asks for it."""
    return Stack(
        folder,
        Ports.from_environment(os.environ),
        settings=environment.passed_on(os.environ),
        replicas=Replicas.from_environment(os.environ),
        report=_say,
    )


def _as_started(folder: StackFolder) -> Stack:
    """The stack that is to be looked at or ended."""
    return stack_as_started(folder, report=_say) if folder.environment_file.exists() else _stack(folder)


def _up(folder: StackFolder) -> int:
    stack = _stack(folder)
    stack.up()
    _say(f"up: the gateway is at {stack.environment['GATEWAY_URL']}; make status, make logs, make down")
    return 0


def _down(folder: StackFolder) -> int:
    _say("down: all stopped, the data is kept" if _as_started(folder).down() else "nothing was running")
    return 0


def _clean(folder: StackFolder) -> int:
    if not folder.path.exists():
        _say("there is nothing to remove")
        return 0
    _as_started(folder).remove()
    _say(f"removed {folder.path}")
    return 0


def _certs(folder: StackFolder, renew: bool) -> int:
    made = _as_started(folder).renew_certificates(every=renew)
    if made:
        _say(f"made certificates for {', '.join(made)}; what runs uses them within seconds")
    else:
        _say("every certificate is good for a month or more (RENEW=1 makes new ones), or MESH_TLS is off")
    _say(f"they are in {folder.certificates}")
    return 0


def _status(folder: StackFolder) -> int:
    stack = _as_started(folder)
    if not stack.is_running():
        _say("the stack is down: run make up")
        return 1
    well = True
    _say(f"{'part':<14}{'port':<8}{'process':<10}{'up for':<12}answer")
    for info in stack.all_info():
        answer = stack.check(info.name) if info.up else info.state.lower()
        well = well and not answer
        minutes, seconds = divmod(info.uptime_s, 60)
        uptime = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if info.up else "-"
        _say(f"{info.name:<14}{stack.port(info.name):<8}{info.pid or '-':<10}{uptime:<12}{answer or 'ready'}")
    return 0 if well else 1


def _logs(folder: StackFolder, part: str) -> int:
    paths = sorted((folder.path / "log").glob(f"{part or '*'}.log"))
    if not paths:
        raise StackError(f"no log of {part!r} in {folder.path / 'log'}" if part else "there are no logs: run make up")
    os.execvp("tail", ["tail", "-n", "20", "-F", *map(str, paths)])  # noqa: S606 (no shell wanted)


def _env(folder: StackFolder) -> int:
    for name, value in sorted(environment.masked(environment.read(folder)).items()):
        _say(f"{name}={value}")
    return 0


def main() -> int:
    """Run one command; 0 if all is well, 1 with a message for people if not."""
    parser = argparse.ArgumentParser(prog="python -m stack", description="The servers and services on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "up": "start everything that does not run, and wait until it answers",
        "down": "stop everything, keep the data",
        "status": "what runs, and whether it answers",
        "clean": "stop everything and remove the data and the secrets",
        "env": "the environment of the stack, secrets blotted out",
    }.items():
        commands.add_parser(name, help=text)
    logs = commands.add_parser("logs", help="follow the logs of all parts, or of one")
    logs.add_argument("part", nargs="?", default="")
    certs = commands.add_parser("certs", help="make the local authority and certificates where they are missing")
    certs.add_argument("--renew", action="store_true", help="make every certificate anew")
    arguments = parser.parse_args()
    actions = {"up": _up, "down": _down, "status": _status, "clean": _clean, "env": _env}
    try:
        folder, note = locate(os.environ)
        if note:
            _say(note)
        if arguments.command == "logs":
            return _logs(folder, arguments.part)
        if arguments.command == "certs":
            return _certs(folder, arguments.renew)
        return actions[arguments.command](folder)
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
