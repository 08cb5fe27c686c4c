"""Programs that use optax's clip, with ours in its place: the same, but where optax is wrong."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradlab.measuring import clipping

f32 = jnp.float32
Make = Callable[[float], optax.GradientTransformation]
BOTH: tuple[Make, Make] = (clipping.clip_by_global_norm, optax.clip_by_global_norm)
TREES: dict[str, Any] = {
    "a tree": {"W": np.ones((4, 3), np.float32), "b": [np.ones(3, np.float32), None]},
    "one leaf": np.ones(5, np.float32),
    "no leaf": {},
    "none": (None, {"x": None}),
    "an empty leaf": {"W": np.ones((0, 3), np.float32), "b": np.float32(2)},
    "two formats": {"W": jnp.ones(3, jnp.bfloat16), "b": np.ones(2, np.float32)},
    "a module": eqx.filter(eqx.nn.MLP(2, 2, 3, 1, key=jax.random.key(0)), eqx.is_inexact_array),
}
PROGRAMS: dict[str, Callable[[optax.GradientTransformation], Any]] = {
    "adam": lambda clip: optax.chain(clip, optax.adam(1e-2)),
    "momentum": lambda clip: optax.chain(clip, optax.sgd(0.1, momentum=0.9)),
    "several steps": lambda clip: optax.MultiSteps(optax.chain(clip, optax.sgd(0.1)), 2),
    "if finite": lambda clip: optax.apply_if_finite(optax.chain(clip, optax.sgd(0.1)), 3),
    "scheduled": lambda clip: optax.chain(
        clip, optax.scale_by_schedule(optax.cosine_decay_schedule(0.1, 5))
    ),
    "masked": lambda clip: optax.chain(
        optax.masked(clip, lambda tree: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 0, tree)),
        optax.sgd(0.1),
    ),
    "injected": lambda clip: optax.inject_hyperparams(
        lambda rate: optax.chain(clip, optax.sgd(rate))
    )(rate=0.1),
    "groups": lambda clip: optax.multi_transform(
        {"clipped": clip, "free": optax.sgd(0.1)},
        lambda tree: jax.tree.map(lambda leaf: "clipped" if jnp.ndim(leaf) else "free", tree),
    ),
}


def gradients(tree: Any, num_steps: int) -> Any:
    """Random gradients of the shapes of a tree, `(step, ...)` a leaf, of sizes from e^-3 to e^3."""
    rng = np.random.default_rng(7)
    sizes = np.exp(rng.uniform(-3, 3, num_steps))

    def drawn(leaf: Any) -> Any:
        shape = (num_steps, *jnp.shape(leaf))
        return jnp.asarray(
            rng.normal(size=shape) * sizes.reshape(-1, *[1] * jnp.ndim(leaf)), leaf.dtype
        )

    return jax.tree.map(drawn, tree)


def trained(program: Any, tree: Any, num_steps: int = 4) -> Any:
    """The parameters after some steps in a scan."""
    params = jax.tree.map(jnp.asarray, tree)

    def step(carry: Any, grads: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = program.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (params, program.init(params))
    run = jax.jit(lambda start, grads: jax.lax.scan(step, start, grads, length=num_steps)[0][0])
    return run(start, gradients(tree, num_steps))


def assert_near(ours: Any, theirs: Any, amount: float) -> None:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (ours, theirs)]
    assert structures[0] == structures[1]
    # optax takes the norm of a bfloat16 leaf in 8 digits, and the factor of all leaves from it.
    is_short = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(ours))
    amount = 4 * 2.0**-8 if is_short else amount
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        # Also where a step goes to nearly nothing.
        size = max(np.abs(np.asarray(other, np.float32)).max(initial=0), amount)
        np.testing.assert_allclose(
            np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=0, atol=amount * size
        )


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_does_the_same_with_either_clip(program: str) -> None:
    ours, theirs = (trained(PROGRAMS[program](make(1.0)), TREES["a tree"]) for make in BOTH)
    # 16 u of a clipped gradient of length 1 in each of four steps; Adam's quotient by its root of
    # squares doubles that, and a parameter of 1 is rounded in each step.
    assert_near(ours, theirs, 4 * 2 * 16 * 2.0**-24)


@pytest.mark.parametrize("name", TREES)
def test_a_tree_of_any_kind_is_clipped_alike(name: str) -> None:
    tree = TREES[name]
    grads = jax.tree.map(lambda leaf: leaf[0], gradients(tree, 1))
    for tau in (1e-2, 1e3):
        ours, theirs = (jax.jit(make(tau).update)(grads, make(tau).init(grads))[0] for make in BOTH)
        assert_near(ours, theirs, 16 * 2.0**-24)


def test_a_mapped_program_does_the_same_with_either_clip() -> None:
    tree = TREES["a tree"]
    many = gradients(tree, 5)
    ours, theirs = (
        jax.jit(jax.vmap(lambda grads, make=make: make(1.0).update(grads, optax.EmptyState())[0]))(
            many
        )
        for make in BOTH
    )
    assert_near(ours, theirs, 16 * 2.0**-24)


@pytest.mark.parametrize(
    ("entries", "tau", "right"),
    [
        ([3e20, 4e20], 1.0, [0.6, 0.8]),
        ([3e-25, 4e-25], 1e-25, [6e-26, 8e-26]),
        ([0.0, 0.0], 1.0, [0.0, 0.0]),
    ],
)
def test_the_two_differ_only_where_optax_is_wrong(
    entries: list[float], tau: float, right: list[float]
) -> None:
    grads = jnp.asarray(entries, f32)
    ours, theirs = (np.asarray(make(tau).update(grads, optax.EmptyState())[0]) for make in BOTH)
    # The entries and tau are rounded to float32 before: two ulps more.
    np.testing.assert_allclose(ours, right, rtol=20 * 2.0**-24)
    assert np.array_equal(ours, theirs) == (entries == [0.0, 0.0])


@pytest.mark.parametrize("dtype", ["int32", jax.dtypes.float0])
def test_what_has_no_norm_is_refused_by_name_and_not_clipped(dtype: Any) -> None:
    grads = {"W": np.ones(2, np.float32), "i": np.zeros(2, dtype)}
    with pytest.raises(TypeError, match=r"leaf '\['i'\]' has dtype .*allowed: real"):
        clipping.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
