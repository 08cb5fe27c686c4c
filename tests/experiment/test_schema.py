"""A config says in its types what may vary in one program, and in its errors what is allowed."""

import dataclasses
import math
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gradlab.errors import BadInput
from gradlab.experiment import schema
from gradlab.models.activations import PHI


@schema.config
class Example:
    activation: str
    depth: int
    sigma_w: list[float]
    sigma_b: float
    names: list[str]
    exact: bool
    gain: float | None = schema.key("a factor", above=0, at_most=2)


GIVEN = {
    "activation": "tanh",
    "depth": 3,
    "sigma_w": [1.0, 2.0],
    "sigma_b": 0.5,
    "names": ["a", "b"],
    "exact": True,
    "gain": None,
}


@schema.config
class Line:
    width: list[int] = schema.key("of a fit", at_least=4, fewest=2)


@pytest.mark.parametrize("few", [[64], 64])
def test_a_list_may_need_several_values(few: Any) -> None:
    with pytest.raises(BadInput, match="width is .*64.*; allowed: at least 2 values, each a whole"):
        schema.read(Line, {"width": few})
    assert list(schema.read(Line, {"width": [64, 128]}).width) == [64, 128]


def test_reading_and_writing_values_is_the_identity() -> None:
    assert schema.values(schema.read(Example, GIVEN)) == GIVEN


def test_floats_are_leaves_and_the_rest_is_structure() -> None:
    cfg = schema.arrays(schema.read(Example, GIVEN))
    leaves = jax.tree.leaves(cfg)
    assert [leaf.shape for leaf in leaves] == [(2,), ()]
    other = schema.arrays(schema.read(Example, GIVEN | {"sigma_w": [3.0, 4.0], "sigma_b": 1}))
    deeper = schema.arrays(schema.read(Example, GIVEN | {"depth": 4}))
    structures: list[Any] = [jax.tree.structure(tree) for tree in (cfg, other, deeper)]
    assert structures[0] == structures[1] != structures[2]


def test_configs_of_one_structure_share_one_compiled_program() -> None:
    traces = []

    @jax.jit
    def compute(cfg: Any) -> jax.Array:
        traces.append(cfg.depth)
        return jnp.sum(cfg.sigma_w) + cfg.sigma_b

    for sigma_b in (0.5, 1.5, 2.5):
        total = compute(schema.arrays(schema.read(Example, GIVEN | {"sigma_b": sigma_b})))
        assert total == 3.0 + sigma_b
    assert traces == [3]


def test_one_number_is_a_list_of_one() -> None:
    cfg: Any = schema.read(Example, GIVEN | {"sigma_w": 1.5})
    assert cfg.sigma_w == (1.5,)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation": "tahn"}, r"activation is 'tahn'; allowed: one of .*tanh"),
        ({"depth": 0}, r"depth is 0; allowed: a whole number at least 1"),
        ({"depth": -1}, r"depth is -1;"),
        ({"depth": 1.5}, r"depth is 1.5;"),
        ({"depth": True}, r"depth is true;"),
        ({"depth": [1, 2]}, r"depth is \[1, 2\];"),
        ({"depth": None}, r"depth is null;"),
        ({"sigma_w": []}, r"sigma_w is an empty list;"),
        ({"sigma_w": [1.0, math.nan]}, r"sigma_w is \[1.0, nan\];"),
        ({"sigma_w": -1.0}, r"sigma_w is -1.0;"),
        ({"sigma_w": 1e9}, r"sigma_w is 1000000000.0;"),
        ({"sigma_b": math.inf}, r"sigma_b is inf;"),
        ({"sigma_b": "much"}, r"sigma_b is 'much'; allowed: a finite number"),
        ({"exact": 1}, r"exact is 1; allowed: true or false"),
        ({"names": [1]}, r"names is \[1\]; allowed: text"),
        ({"gain": 0.0}, r"gain is 0.0; allowed: a finite number above 0 and at most 2 or null"),
        ({"dephth": 3}, r"key 'dephth' is not known; did you mean 'depth'\?"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(change: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=f"^{named}") as caught:
        schema.read(Example, GIVEN | change)
    assert "\n" not in str(caught.value)


def test_a_key_that_must_be_below_another_is_held_against_it() -> None:
    @schema.config
    class Range:
        low: float = schema.key("one end", above=0, below="high")
        high: float = schema.key("the other end")

    assert schema.read(Range, {"low": 1.0, "high": 2.0}).low == 1.0
    with pytest.raises(BadInput, match=r"^low is 2.0 and high is 2.0; allowed: low below high$"):
        schema.read(Range, {"low": 2.0, "high": 2.0})
    assert schema.entries(Range)[0].allowed() == "a finite number above 0 and below high"


def test_a_missing_key_is_named() -> None:
    given = {name: value for name, value in GIVEN.items() if name != "depth"}
    with pytest.raises(BadInput, match="^key 'depth' is missing; allowed: a whole number"):
        schema.read(Example, given)


def test_a_type_that_no_config_can_hold_is_refused_when_the_class_is_read() -> None:
    @schema.config
    class Wrong:
        table: dict[str, int]

    with pytest.raises(BadInput, match="Wrong.table is annotated"):
        schema.entries(Wrong)


def test_every_word_explains_itself() -> None:
    assert all(word.doc for word in schema.WORDS.values())


def test_the_activations_told_before_jax_is_there_are_those_of_the_table() -> None:
    assert tuple(PHI) == schema.ACTIVATIONS


def test_a_config_is_read_without_importing_jax() -> None:
    program = (
        "import sys; import gradlab as gl\n"
        "@gl.config\n"
        "class Config:\n    depth: int\n    w: gl.Floats\n"
        "gl.schema.read(Config, {'depth': 3, 'w': 1.0})\n"
        "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_config_is_a_dataclass() -> None:
    assert [field.name for field in dataclasses.fields(Example)] == list(GIVEN)
