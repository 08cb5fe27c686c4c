"""One program has the honest function and every wrong one, and an argument picks."""

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.calibration import variants
from gradlab.calibration.mutations import Mutation
from gradlab.experiment.fault import then


def test_each_pick_is_the_function_with_one_mutation_and_0_is_the_honest_one() -> None:
    group = [
        Mutation("doubled", {"sine": then(lambda y: 2 * y), "root": then(lambda y: 2 * y)}),
        Mutation("negated", {"sine": then(lambda y: -y)}),
    ]

    @jax.jit
    def program(pick: int) -> jax.Array:
        made = variants.planted_together(group, lambda: pick)
        return jnp.stack([made["sine"](jnp.sin)(1.0), made["root"](jnp.sqrt)(4.0)])

    sine = np.sin(1.0)
    for pick, wanted in enumerate([(sine, 2.0), (2 * sine, 4.0), (-sine, 2.0)]):
        np.testing.assert_allclose(program(pick), wanted, rtol=1e-12)


def test_a_function_that_calls_itself_is_wrong_once() -> None:
    def fourth(x: jax.Array, times: int = 2) -> jax.Array:
        return x if times == 0 else wrong(2 * x, times - 1)

    group = [Mutation("tripled", {"fourth": then(lambda y: 3 * y)})]
    wrong = variants.planted_together(group, lambda: 1)["fourth"](fourth)

    assert float(wrong(jnp.asarray(1.0))) == 12


def test_mutations_of_one_function_are_together_and_those_of_draws_alone() -> None:
    def of(name: str, *sites: str) -> Mutation:
        return Mutation(name, {site: lambda honest: honest for site in sites})

    more, less, other, draws, weights = (
        *(of("more", "a"), of("less", "a"), of("more", "b")),
        *(of("twice", "grid.over_draws"), of("bias", "c", "d")),
    )
    assert variants.groups([more, other, draws, less, weights]) == [
        *([more, less], [other]),
        *([draws], [weights]),
    ]
