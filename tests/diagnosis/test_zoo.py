"""Models that nobody here wrote, as their authors initialise them, have no finding."""

from typing import Any

import jax
import pytest

import gradlab as gl
from tests.diagnosis import zoo


@pytest.mark.verify
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(zoo.MODELS))
def test_a_model_of_others_is_read_and_has_no_finding(name: str) -> None:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        case: Any = zoo.MODELS[name]()  # `make verify` has installed them
        found = gl.audit(*case)

    assert len(found.layers) > 1
    assert found.findings == []
