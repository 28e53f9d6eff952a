"""Runs that several tests compare theirs with."""

from typing import Callable, Dict, List, Tuple

import pytest

from tests.endings.conftest import limited  # noqa: F401
from tests.support.jobs import Ended

from .runs import Env, run

Whole = Callable[[str, int, Env], List[Ended]]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Give a function that returns the ends of an uninterrupted job, run once for all tests."""
    done: Dict[Tuple[object, ...], List[Ended]] = {}

    def ends(kind: str, hosts: int, env: Env) -> List[Ended]:
        key = (kind, hosts, *sorted(env.items()))
        if key not in done:
            done[key] = run(tmp_path_factory.mktemp("whole"), kind, hosts, env)
        return done[key]

    return ends
