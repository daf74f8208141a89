"""That no test is skipped unnoticed."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.skips import needs, skip_or_fail


def test_a_skip_is_a_failure_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no tool"):
        skip_or_fail("no tool")
    assert needs(None, "no tool").args == (True,)
    assert needs("/bin/tool", "no tool").args == (False,)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no tool"):
        skip_or_fail("no tool")
    assert needs(None, "no tool").args == (False,)


def test_the_summary_names_every_skip(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(2))\n"
        "def test_a(n): pytest.skip('no tool')\n"
        "@pytest.mark.skipif(True, reason='no moon')\n"
        "def test_b(): pass\n"
    )
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_terminal_summary\n")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "-c",
        "/dev/null",
        tmp_path,
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert "NOT EVERYTHING WAS TESTED" in done.stdout, done
    assert "2 tests skipped: no tool" in done.stdout
    assert "1 test skipped: no moon" in done.stdout
