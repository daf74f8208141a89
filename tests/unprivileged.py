"""Tests of permissions need a user whom they bind: root is none."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

NOBODY = 65534


@contextlib.contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Run the block as a user without privileges who owns `folder` and all that is in it, as far as root can do that.

    Whoever is not root stays who they are.
    """
    if os.geteuid() != 0:
        yield
        return
    for parent in folder.parents:
        if parent.stat().st_mode & 0o077 == 0:
            parent.chmod(0o711)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
