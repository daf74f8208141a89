"""What the service files must allow, so that the system calls made by name are not forbidden where it counts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ccat_data_transfer.storage import syscalls

DEPLOY = Path(__file__).parents[3] / "deploy"
# Of those that are made by name, the ones that systemd has in the group; `mincore` is in none that services have.
IN_GROUP = {"fallocate", "renameat2"}


def made_by_name() -> set[str]:
    return set(re.findall(r'_call\(\s*"(\w+)"', Path(syscalls.__file__).read_text()))


@pytest.mark.parametrize("name", ["worker@.service", "archive-manager.service"])
def test_the_service_files_allow_every_system_call_that_is_made_by_name(name: str) -> None:
    (line,) = re.findall(r"^SystemCallFilter=(.+)$", (DEPLOY / name).read_text(), flags=re.MULTILINE)
    group, *named = line.split()
    assert group == "@system-service"
    assert "mincore" in made_by_name()
    assert made_by_name() - IN_GROUP == set(named)


def test_the_group_has_what_is_taken_to_be_in_it() -> None:
    if shutil.which("systemd-analyze") is None:
        return  # then the list above stands for it
    found: set[str] = set()
    waiting = ["@system-service"]
    while waiting:
        command = ["systemd-analyze", "syscall-filter", waiting.pop()]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        entries = {entry for line in text.splitlines()[1:] if (entry := line.strip()) and entry[0] != "#"}
        waiting += [entry for entry in entries if entry[0] == "@"]
        found |= entries
    assert found >= IN_GROUP
    assert "mincore" not in found
