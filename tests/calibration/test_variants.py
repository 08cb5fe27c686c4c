"""One program has the honest function and every wrong one, and an argument picks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.calibration import variants
from gradlab.calibration.mutations import Mutation
from gradlab.calibration.rehearsal import Rehearsal
from gradlab.calibration.wrong import Change, OfResult
from gradlab.experiment import loading
from gradlab.running import composition
from tests.toys import Toy


def replaced(other: Callable[..., Any]) -> Change:
    return lambda _: other


def together(group: list[Mutation], pick: Any) -> tuple[dict[str, Change], set[int]]:
    made = variants.Variants(group, lambda: pick)
    return made.sites, made.unable


@pytest.mark.parametrize("way", [OfResult, lambda f: lambda honest: lambda x: f(honest(x))])
def test_each_pick_is_the_function_with_one_mutation_and_0_is_the_honest_one(way: Any) -> None:
    group = [
        Mutation("doubled", {"sine": way(lambda y: 2 * y), "root": way(lambda y: 2 * y)}),
        Mutation("negated", {"sine": way(lambda y: -y)}),
    ]

    @jax.jit
    def program(pick: int) -> jax.Array:
        made, _ = together(group, pick)
        return jnp.stack([made["sine"](jnp.sin)(1.0), made["root"](jnp.sqrt)(4.0)])

    sine = np.sin(1.0)
    for pick, wanted in enumerate([(sine, 2.0), (2 * sine, 4.0), (-sine, 2.0)]):
        np.testing.assert_allclose(program(pick), wanted, rtol=1e-12)


def test_a_function_that_calls_itself_is_wrong_once() -> None:
    def fourth(x: jax.Array, times: int = 2) -> jax.Array:
        return x if times == 0 else wrong(2 * x, times - 1)

    group = [Mutation("tripled", {"fourth": OfResult(lambda y: 3 * y)})]
    wrong = together(group, 1)[0]["fourth"](fourth)

    assert float(wrong(jnp.asarray(1.0))) == 12


@pytest.mark.parametrize(("pick", "expected"), [(0, 5.0), (1, 5.5), (2, 10.0), (3, 3.5)])
def test_of_a_function_within_another_either_is_wrong_and_within_a_wrong_one_none(
    pick: int, expected: float
) -> None:
    def inner(x: jax.Array) -> jax.Array:
        return x + 1

    def outer(x: jax.Array) -> jax.Array:
        return 2 * x + wrong_inner(x) / 2

    group = [
        Mutation("inner", {"inner": OfResult(lambda y: y + 1)}),
        Mutation("outer", {"outer": lambda honest: lambda x: 2 * honest(x)}),
        Mutation(
            "both", {"outer": OfResult(lambda y: 0.7 * y), "inner": OfResult(lambda y: 9 * y)}
        ),
    ]
    made, _ = together(group, pick)
    wrong_inner = made["inner"](inner)

    assert float(made["outer"](outer)(jnp.asarray(1.8))) == pytest.approx(expected)


def test_a_function_given_to_a_wrong_one_is_honest_when_jax_asks_for_its_derivative() -> None:
    def steep(x: jax.Array) -> jax.Array:
        return x**2

    def applied(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        return function(x)

    def lazily(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        later = jax.custom_jvp(function)
        later.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
        return 3 * later(x)

    group = [
        Mutation("lazily", {"applied": replaced(lazily)}),
        Mutation("doubled", {"steep": lambda honest: lambda x: 2 * honest(x)}),
    ]

    def slope(pick: int) -> jax.Array:
        made, _ = together(group, pick)
        wrong = made["steep"](steep)
        return jax.grad(lambda x: made["applied"](applied)(wrong, x))(1.0)

    np.testing.assert_allclose([jax.jit(slope)(pick) for pick in range(3)], [2.0, 6.0, 4.0])


def test_what_raises_or_has_another_shape_is_told_and_the_others_are_picked() -> None:
    def fails(x: jax.Array) -> jax.Array:
        raise ValueError(x)

    wrong = {"raises": fails, "two": lambda x: jnp.stack([x, x]), "cosine": jnp.cos}
    group = [Mutation(name, {"sine": replaced(other)}) for name, other in wrong.items()]
    made, unable = together(group, 3)

    np.testing.assert_allclose(made["sine"](jnp.sin)(jnp.ones(())), np.cos(1.0))
    assert unable == {1, 2}


EXPERIMENT = '''"""What is one, twice?"""

import gradlab as gl
from gradlab.lazy import jax, jnp


@gl.config
class Config:
    activation: str
    depth: int
    width: int
    sigma_w: float
    w: gl.Floats
    fail: str


def one(x):
    return x


def compute(cfg, key):
    drawn = gl.ensembles.unit_gaussian(key, (2, 2), float)
    return {"one": gl.named(one(jnp.ones(()))), "drawn": gl.named(drawn[0, 0])}


def figure(data):
    raise NotImplementedError


def claims(data):
    yield gl.claim.equal("one", data.one, 1.0, "x")


FAULTS = {}
'''


def test_a_program_picks_by_number_scales_weights_and_is_split_by_what_cannot_be_traced(
    toy: Toy,
) -> None:
    def untold(honest: Callable[..., Any]) -> Callable[..., Any]:
        raise ValueError(honest)

    toy.file.write_text(EXPERIMENT)
    experiment = loading.load(toy.file)
    _, cfg = composition.composed(experiment, [])
    one = Rehearsal(experiment, cfg)
    group = [
        Mutation("doubled", {"one": OfResult(lambda y: 2 * y)}),
        Mutation("untold", {"one": untold}),
        Mutation("tripled", {"one": OfResult(lambda y: 3 * y)}),
    ]
    first, bad, last = variants.programs(one, group)

    def ones(program: variants.Program, *picked: int) -> list[float]:
        return [float(program.arrays(0, pick)["one"].values) for pick in picked]

    assert ones(first, 0, 1) == [1.0, 2.0]
    assert ones(last, *last.mutations) == [3.0]
    assert ([mutation.name for mutation in bad.unable], dict(bad.mutations)) == (["untold"], {})
    drawn, scaled = (first.arrays(0, factor=factor)["drawn"].values for factor in (1.0, 1.5))
    assert float(scaled) == 1.5 * float(drawn)
