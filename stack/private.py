"""A stack for tests and benchmarks: own folder, own ports, gone when its process is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from stack.folder import StackFolder
from stack.ports import PortLease
from stack.replicas import Replicas
from stack.stack import Stack


def private_stack(
    settings: Mapping[str, str] | None = None,
    *,
    replicas: Replicas | None = None,
    extra_environment: Mapping[str, Mapping[str, str]] | None = None,
    prefix: str = "test",
) -> tuple[Stack, PortLease]:
    """A stack in a folder (named after ``prefix``) and on ports that nobody else uses; nothing under it is started yet.

    It ends with this process, however that ends. Discard the stack and close the lease when done.
    """
    lease = PortLease()
    path = Path(tempfile.mkdtemp(prefix=f"flashsale-{prefix}-"))
    path.rmdir()
    try:
        stack = Stack(
            StackFolder(path),
            lease.ports,
            settings=settings,
            replicas=replicas,
            extra_environment=extra_environment,
        )
        stack.open(with_parent=True)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        lease.close()
        raise
    return stack, lease
