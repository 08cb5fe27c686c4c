"""Other libraries' own clips, held against the cells that the matrix has for their models.

They are no part of what the suite needs: `make rivals` installs them, by a lock of their own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.experiment import loading
from gradlab.measuring import clip_rules
from gradlab.running import composition

ROOT = Path(__file__).parents[2]
MATRIX: Any = loading.load(ROOT / "experiments" / "clipping_matrix.py").module
VALUES = composition.content(ROOT / "configs" / "clipping_matrix.yaml")
Clip = Callable[[list[Any], float], list[Any]]


def tensorflow(leaves: list[Any], tau: float) -> list[Any]:
    """What tf.clip_by_global_norm gives."""
    import tensorflow as tf

    try:
        clipped, _ = tf.clip_by_global_norm([tf.constant(leaf) for leaf in leaves], tau)
    except tf.errors.InvalidArgumentError as refused:
        raise ValueError(str(refused)) from refused
    return [jnp.asarray(leaf.numpy()) for leaf in clipped]


def torch(leaves: list[Any], tau: float) -> list[Any]:
    """What torch.nn.utils.clip_grad_norm_ leaves."""
    import torch

    formats = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    parameters = []
    for leaf in leaves:
        # Through float32, which holds them all: numpy's bfloat16 is not known to torch.
        grad = torch.tensor(np.asarray(leaf, np.float32)).to(formats[np.dtype(leaf.dtype).name])
        parameters.append(torch.nn.Parameter(torch.zeros_like(grad)))
        parameters[-1].grad = grad
    torch.nn.utils.clip_grad_norm_(parameters, tau)
    found = [parameter.grad.to(torch.float32).numpy() for parameter in parameters]
    return [jnp.asarray(one, leaf.dtype) for one, leaf in zip(found, leaves, strict=True)]


def inputs() -> dict[str, tuple[list[Any], float]]:
    """The gradients of the matrix and their thresholds, but for those of derivatives."""
    long = {
        name: ([np.asarray(entries, np.float32)], tau)
        for name, (entries, tau) in MATRIX.FLOAT32.items()
    }
    short = {
        name: ([np.asarray(entries, jnp.dtype(dtype))], 1.0)
        for name, (entries, dtype) in MATRIX.SHORT.items()
    }
    mixed = [np.asarray([3.0, 4.0], dtype) for dtype in ("float16", "float32")]
    return long | short | {"float16 and float32": (mixed, 1.0)}


def outcome(name: str, clip: Clip, leaves: list[Any], tau: float) -> str:
    """Right, loud or silent, as the matrix judges it; loud where the library refuses."""
    cfg = MATRIX.Config(rule=[name], allowed=float(VALUES["allowed"]))
    try:
        found = clip(leaves, tau)
    except (TypeError, ValueError, RuntimeError):
        return "l"
    kind, _ = MATRIX.judged(found, MATRIX.exact(name, leaves, tau), cfg)
    return str(MATRIX.LETTERS[int(kind)])


LIBRARIES = {"TensorFlow": ("tensorflow", tensorflow), "PyTorch": ("torch", torch)}


def test_a_model_that_says_so_is_held_against_its_library_here() -> None:
    held = {name: rule.held for name, rule in clip_rules.RULES.items() if rule.held}
    assert held.keys() == LIBRARIES.keys()
    assert all(held[name].startswith(f"{library} ") for name, (library, _) in LIBRARIES.items())


@pytest.mark.verify
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_does_at_each_input_what_its_model_does(name: str) -> None:
    library, clip = LIBRARIES[name]
    pytest.importorskip(library)
    found = "".join(outcome(name, clip, *given) for given in inputs().values())
    assert found == MATRIX.KNOWN[name][: len(found)]
