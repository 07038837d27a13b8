"""What every test shares: slow tests run only when asked for, and no test sees this machine's own profiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from ranks import Ranks

# A machine at work on something else must not fail a test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


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


def _pool(size: int) -> Iterator[Ranks]:
    from ranks import Ranks

    ranks = Ranks(size)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def two() -> Iterator[Ranks]:
    """Two gloo ranks; like ``four`` and ``eight`` started once, when a test first asks for them."""
    yield from _pool(2)


@pytest.fixture(scope="session")
def four() -> Iterator[Ranks]:
    """Four gloo ranks."""
    yield from _pool(4)


@pytest.fixture(scope="session")
def eight() -> Iterator[Ranks]:
    """Eight gloo ranks."""
    yield from _pool(8)
