"""Who may do what in RabbitMQ: its definitions, which it reads at every start.

A process may configure (declare, delete), write (publish, bind to) and read (consume, purge, bind from) what matches
three patterns (rabbitmq.com/docs/access-control).
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from stack.errors import NotReadyError
from stack.folder import StackFolder, own_file, server_user
from stack.ports import Ports
from stack.rabbitmq_server import ADMINISTRATOR, log_in, password_of
from stack.secret_store import Secrets

VIRTUAL_HOST = "/"
_NOTHING, _EVERYTHING = "^$", ".*"
#: configure, write, read.
PERMISSIONS = {
    ADMINISTRATOR: (_EVERYTHING, _EVERYTHING, _EVERYTHING),
    # Sends purchases to be settled, and lets operators look at dead letters and send them again; what is left of one
    # goes back there, or waits in the slowest retry queue while they are full. It makes no queue, and takes no purchase
    # out of those of the workers.
    "purchase": (_NOTHING, r"^settlement(\.dead|\.retry\.30s)?$", r"^settlement\.dead\.letters$"),
    # The queues are the workers' own: whoever may empty them may as well make them anew when they are gone.
    "settlement": (r"^settlement(\..+)?$",) * 3,
}


def definitions_file(folder: StackFolder) -> Path:
    """What RabbitMQ reads at its start. It holds salted hashes and no password."""
    return folder.rabbitmq / "definitions.json"


def write_definitions(folder: StackFolder, secrets: Secrets) -> None:
    """Write down the users and their permissions, unless that is how they are written down already."""
    definitions = {
        "vhosts": [{"name": VIRTUAL_HOST}],
        "users": [
            {
                "name": user,
                "password_hash": _salted_hash(password_of(user, secrets)),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                # Tags are for the management plugin, which does not run.
                "tags": [],
            }
            for user in PERMISSIONS
        ],
        "permissions": [
            {"user": user, "vhost": VIRTUAL_HOST, "configure": configure, "write": write, "read": read}
            for user, (configure, write, read) in PERMISSIONS.items()
        ],
    }
    path, text = definitions_file(folder), json.dumps(definitions, indent=1) + "\n"
    if not path.exists() or path.read_text() != text:
        own_file(path, text, server_user("rabbitmq"))


def are_told(folder: StackFolder, started_s: float) -> bool:
    """Whether a broker that runs since ``started_s`` (seconds since the epoch) knows what is written down: it has read
    it at its start, or was told of it since."""
    told = told_file(folder)
    known_since_s = max(started_s, told.stat().st_mtime if told.exists() else 0.0)
    return definitions_file(folder).stat().st_mtime <= known_since_s


def note_told(folder: StackFolder) -> None:
    """Remember that the broker that runs has been told."""
    told_file(folder).touch()


def told_file(folder: StackFolder) -> Path:
    """Changed when the broker that runs was told."""
    return definitions_file(folder).with_suffix(".told")


def are_admitted(ports: Ports, secrets: Secrets) -> bool:
    """Whether the broker that runs knows every user."""
    try:
        for user in PERMISSIONS:
            log_in(ports.amqp, user, password_of(user, secrets))
    except NotReadyError:
        return False
    return True


def _salted_hash(password: str) -> str:
    """As RabbitMQ keeps it: four bytes of salt, and the SHA-256 of salt and password (rabbitmq.com/docs/passwords).

    The password has 256 random bits and needs no salt, so it is one that is the same each time.
    """
    salt = hashlib.sha256(b"salt" + password.encode()).digest()[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
