"""What every test shares: slow tests run only when asked for, and no test sees this machine's own profiles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked ``slow`` unless an expression is given with ``-m`` or a test by its name."""
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session", autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured profiles of a test run live and die with it; subprocesses inherit the setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPLAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
