"""Who may do what in RabbitMQ: its definitions, which it reads at every start.

A process may configure (declare, delete), write (publish, bind to) and read (consume, purge, bind from) what matches
three patterns (rabbitmq.com/docs/access-control).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets as random_source
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
    """Write down the users and their permissions."""
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
    own_file(definitions_file(folder), json.dumps(definitions, indent=1) + "\n", server_user("rabbitmq"))


def are_admitted(ports: Ports, secrets: Secrets) -> bool:
    """Whether the broker that runs knows every user."""
    try:
        for user in PERMISSIONS:
            log_in(ports.amqp, user, password_of(user, secrets))
    except NotReadyError:
        return False
    return True


def _salted_hash(password: str) -> str:
    """As RabbitMQ keeps it: four bytes of salt, and the SHA-256 of salt and password (rabbitmq.com/docs/passwords)."""
    salt = random_source.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
