"""Training as a trajectory: real data, a loss, and an optimiser's loop in one `jax.lax.scan`.

Pure and traceable: `jax.jit` it, `jax.vmap` it over learning rates or thresholds. A run that
diverges returns its inf and nan as they are.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from gradlab.arithmetic import norms
from gradlab.errors import BadInput
from gradlab.models import ensembles
from gradlab.models.chain import Chain

Params = Any  # any pytree of real floating arrays
Apply = Callable[[Params, Array], Array]  # parameters and one input to the logits

FIRST = 3
"""Steps of a training whose parameters it keeps: what it can be held against by hand."""

# Every fifth image is held out. The file is ordered by writer, so both parts know every hand.
_HELD_OUT = 5


class Data(NamedTuple):
    """Inputs `x`, `(num_examples, ...)`, and their class labels `y`, `(num_examples,)`."""

    x: Array
    y: Array


class Schedule(NamedTuple):
    """Which examples each step sees.

    Attributes:
        indices: `(num_steps, batch_size)` into the data.
        gain: `(num_steps,)` the inputs of a step are multiplied by this: 1, or a freak batch.
    """

    indices: Array
    gain: Array


class Trajectory(NamedTuple):
    """What happened at each step, in the order of its computation.

    Attributes:
        loss: `(num_steps,)` of the batch, before the step.
        gradient: `(num_steps, num_layers)` norm of the loss's gradient in each layer's parameters.
        step_size: `(num_steps,)` norm of the change of all parameters.
        distance: `(num_steps,)` norm of the parameters less those at the start, after the step.
        watched: what `watch` returned of the parameters before the step, `(num_steps, ...)`.
        first: the parameters at the start and after each of the first `FIRST` steps, a new axis.
        params: at the end.
        optimizer: the optimiser's state at the end, where a monitor keeps its record.
    """

    loss: Array
    gradient: Array
    step_size: Array
    distance: Array
    watched: Any
    first: Params
    params: Params
    optimizer: Any


def digits(dtype: DTypeLike) -> tuple[Data, Data]:
    """The handwritten digits of Alpaydin and Kaynak 1998: 1438 to train on and 359 held out.

    `x` `(num_examples, 64)` holds grey values between 0 and 1, `y` the digit. The file is part of
    gradlab (gradlab/data/README.md); nothing is loaded from elsewhere.
    """
    pixels, labels = _digits()
    held_out = np.arange(len(labels)) % _HELD_OUT == _HELD_OUT - 1
    return tuple(  # type: ignore[return-value]
        Data(jnp.asarray(pixels[part], dtype), jnp.asarray(labels[part]))
        for part in (~held_out, held_out)
    )


def projected(data: Data, P: Array) -> Data:
    """The data with inputs `P (x - mean)`, `(num_examples, width)`, each scaled to mean square 1.

    Args:
        data: inputs `(num_examples, num_pixels)`.
        P: `(width, num_pixels)`.
    """
    x = (data.x - jnp.mean(data.x, axis=0, keepdims=True)) @ P.T
    return data._replace(x=x / jnp.sqrt(jnp.mean(x * x, axis=1, keepdims=True)))


def digits_of_width(key: Array, width: int, dtype: DTypeLike) -> Data:
    """The digits to train on, `projected` at random to inputs `(num_examples, width)`."""
    data, _ = digits(dtype)
    return projected(data, ensembles.unit_gaussian(key, (width, data.x.shape[1]), data.x.dtype))


def class_correlations(data: Data, num_classes: int) -> tuple[Array, Array]:
    """The mean correlation of two inputs of one class, and of two of different classes, `()` each.

    Inputs are of mean square 1, as those of `projected`.
    """
    member = jax.nn.one_hot(data.y, num_classes, dtype=data.x.dtype)
    number, sums = jnp.sum(member, axis=0), member.T @ data.x
    square = jnp.sum(jnp.square(sums)) / data.x.shape[1]
    total = jnp.sum(jnp.square(jnp.sum(sums, axis=0))) / data.x.shape[1]
    pairs = jnp.sum(number * number)
    within = (square - data.y.size) / (pairs - data.y.size)
    return within, (total - square) / (data.y.size**2 - pairs)


@cache
def _digits() -> tuple[Any, Any]:
    packed = (files("gradlab") / "data" / "digits.csv.gz").read_bytes()
    rows = np.loadtxt(gzip.decompress(packed).decode().splitlines(), delimiter=",", dtype=np.int32)
    return rows[:, :-1] / 16, rows[:, -1]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over a batch of -log softmax(logits)[label], `()` (nats).

    Args:
        logits: `(batch_size, num_classes)`.
        labels: `(batch_size,)`.
    """
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def one_read(key: Array) -> tuple[Array, Callable[[Array], Array]]:
    """A random digit as an input `(64,)` of mean square 1, and the loss of who reads it at the end.

    The loss is the cross-entropy (nats) of a random linear read-out of 64 neurons.
    """
    key_digit, key_readout = jax.random.split(key)
    data, _ = digits(float)
    width, which = data.x.shape[1], jax.random.randint(key_digit, (), 0, data.y.size)
    x, y = (part[which] for part in projected(data, jnp.eye(width)))
    W = jax.random.normal(key_readout, (10, width)) / jnp.sqrt(width)
    return x, lambda z: cross_entropy((W @ z)[None], y[None])


def ten_logits(model: Chain, image: Array) -> Array:
    """The first ten outputs of a chain, `(10,)`, for an image with zeros after it up to its width.

    The chain's layers have a bias b, as those of `ensembles.random`.
    """
    return model(jnp.pad(image, (0, model.params.b.shape[-1] - image.size)))[:10]


def loss(apply: Apply, params: Params, data: Data) -> Array:
    """The cross-entropy of a model's logits, the mean over all of `data`, `()` (nats)."""
    return cross_entropy(jax.vmap(lambda x: apply(params, x))(data.x), data.y)


def accuracy(apply: Apply, params: Params, data: Data) -> Array:
    """The fraction of `data` whose largest logit is the label's, `()`."""
    logits = jax.vmap(lambda x: apply(params, x))(data.x)
    return jnp.mean(jnp.argmax(logits, axis=1) == data.y, dtype=logits.dtype)


def apply_model(model: Any, x: Array) -> Array:
    """The output of a model that is its own parameters: a `Chain`, or a sequence of them."""
    for segment in (model,) if isinstance(model, Chain) else model:
        x = segment(x)
    return x


def schedule(key: Array, num_examples: int, batch_size: int, num_steps: int) -> Schedule:
    """Batches that go through the data in a new random order each time round, gain 1.

    Raises:
        BadInput: a batch is larger than the data, or a count is below 1.
    """
    if not 1 <= batch_size <= num_examples or num_steps < 1:
        raise BadInput(
            f"batch_size is {batch_size} and num_steps {num_steps}; allowed: 1 to {num_examples} "
            "examples in a batch and at least 1 step"
        )
    per_round = num_examples // batch_size
    keys = jax.random.split(key, -(-num_steps // per_round))
    orders = jax.vmap(lambda key: jax.random.permutation(key, num_examples))(keys)
    batches = orders[:, : per_round * batch_size].reshape(-1, batch_size)
    return Schedule(batches[:num_steps], jnp.ones(num_steps))


def with_freak(schedule: Schedule, step: int, gain: ArrayLike) -> Schedule:
    """The schedule with the inputs of one step, counted from 0, multiplied by `gain`.

    Raises:
        BadInput: there is no such step.
    """
    num_steps = schedule.gain.size
    if not 0 <= step < num_steps:
        raise BadInput(f"freak_step is {step}; allowed: 0 to {num_steps - 1}")
    return schedule._replace(gain=schedule.gain.at[step].set(gain))


def whole_batches(data: Data, schedule: Schedule) -> tuple[Data, Schedule]:
    """Data of which each example is a whole batch of the schedule, and one of them for each step.

    For a model that sees a batch at once, as batch normalisation asks for: `x` is
    `(num_steps, batch_size, ...)`, `y` `(num_steps, batch_size)`.
    """
    batches = Data(data.x[schedule.indices], data.y[schedule.indices])
    return batches, schedule._replace(indices=jnp.arange(schedule.gain.size)[:, None])


def batch(data: Data, indices: Array, gain: Array) -> Data:
    """The examples of one step, `(batch_size, ...)`, their inputs multiplied by `gain`."""
    x = data.x[indices]
    return Data(x * gain.astype(x.dtype), data.y[indices])


def norms_by_layer(grads: Params) -> Array:
    """The norm of the gradient in each layer, `(num_layers,)`.

    A layer is a layer of each `Chain` in the pytree, in order, and any leaf outside of one.
    """
    parts = jax.tree.leaves(grads, is_leaf=_is_chain)
    return jnp.concatenate([_norms(part) for part in parts])


def _is_chain(part: Any) -> bool:
    return isinstance(part, Chain)


def _norms(part: Any) -> Array:
    return jax.vmap(fast_norm)(part.params) if _is_chain(part) else fast_norm(part)[None]


def fast_norm(tree: Params) -> Array:
    """The Euclidean norm over all entries of a pytree, `()`, to some ulps and without overflow.

    It compiles in a quarter of the time of `clipping.norm`, which is right to one ulp.
    """
    leaves = [
        leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        for leaf in map(jnp.asarray, jax.tree.leaves(tree))
    ]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    unit = norms.divisor(largest)
    squares = jnp.stack([jnp.sum(jnp.square(leaf / unit)) for leaf in leaves])
    return unit * jnp.sqrt(jnp.sum(squares))


def no_watch(params: Params) -> None:
    """Nothing: a run that watches no more than its trajectory holds anyway."""
    del params


def train(
    apply: Apply,
    params: Params,
    optimizer: optax.GradientTransformation,
    data: Data,
    batches: Schedule,
    watch: Callable[[Params], Any] = no_watch,
) -> Trajectory:
    """The trajectory of minimising the cross-entropy of `apply(params, x)` on `data`.

    Args:
        apply: from the parameters and one input to its logits.
        params: the start, any pytree.
        optimizer: any optax optimiser, with or without clipping before it.
        data: what the schedule's indices point into.
        batches: the steps.
        watch: what else to record, of the parameters before each step.
    """

    def one_step(carry: tuple[Params, Any, Params], at: Any) -> tuple[Any, Any]:
        (now, state, first), (k, step) = carry, at
        value, grads = jax.value_and_grad(
            lambda params: loss(apply, params, batch(data, step.indices, step.gain))
        )(now)
        updates, state = optimizer.update(grads, state, now)
        later = optax.apply_updates(now, updates)
        moved = jax.tree.map(jnp.subtract, later, params)
        sizes = norms_by_layer(grads), fast_norm(updates), fast_norm(moved)
        first = jax.tree.map(lambda kept, p: kept.at[k + 1].set(p, mode="drop"), first, later)
        return (later, state, first), (value, sizes, watch(now))

    num_steps = len(batches.gain)
    rows = min(FIRST, num_steps) + 1
    kept = jax.tree.map(lambda p: jnp.broadcast_to(p, (rows, *p.shape)), params)
    (end, state, first), (values, (gradient, step_size, distance), watched) = jax.lax.scan(
        one_step, (params, optimizer.init(params), kept), (jnp.arange(num_steps), batches)
    )
    return Trajectory(values, gradient, step_size, distance, watched, first, end, state)
