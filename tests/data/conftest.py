import logging

import pytest


@pytest.fixture
def logged(caplog):
    """The messages of moco's log, whether or not a run before has cut it off from the root's."""
    log = logging.getLogger("moco")
    log.addHandler(caplog.handler)
    propagate, level = log.propagate, log.level
    log.propagate = False
    log.setLevel(logging.INFO)
    yield caplog
    log.removeHandler(caplog.handler)
    log.propagate = propagate
    log.setLevel(level)
