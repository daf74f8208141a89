"""Skipping a test that cannot run here: allowed at a desk, never in CI, where nobody would see it."""

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str, *, whole_module: bool = False) -> NoReturn:
    """Skip the test, or the module that is being imported; in CI fail it."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (in CI nothing may be skipped)", pytrace=False)
    pytest.skip(reason, allow_module_level=whole_module)


def needs(is_there: object, reason: str) -> pytest.MarkDecorator:
    """The mark of a test that needs something; in CI it runs all the same, and fails for what is missing."""
    return pytest.mark.skipif(not is_there and not os.environ.get("CI"), reason=reason)
