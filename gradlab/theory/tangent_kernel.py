"""The tangent kernel at infinite width: how fast gradient descent moves what a deep chain says.

A step of rate eta on the loss of one example moves an output at another by eta times the kernel,
the sum over all parameters of both outputs' derivatives: Jacot, Gabriel and Hongler 2018. Layers
are phi(W z + b), W_ij ~ N(0, sigma_w²/width), b ~ N(0, sigma_b²), and an output is a row of
variance 1/width times the last of them; all parameters are trained as they stand, so that the
kernel grows with the width (the standard parametrisation of Lee et al. 2019). How its eigenvalues
depend on depth in order and in chaos: Xiao, Pennington and Schoenholz 2020, section 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import Phi
from gradlab.theory import gauss, meanfield

_finfo: Any = jnp.finfo  # JAX gives it no types.


class Kernel(NamedTuple):
    """The kernel after each number of layers, `(depth,)`, for two inputs of mean square 1.

    Attributes:
        same: of an input with itself.
        gap: how much less it is for two inputs; their difference, without cancellation.
    """

    same: Array
    gap: Array


class Rates(NamedTuple):
    """Eigenvalues of the kernel over the number of examples, `(depth,)`.

    Attributes:
        largest: at least, on a batch: of the direction in which all outputs move alike.
        classes: of the directions in which the classes part, and each example from its class.
    """

    largest: Array
    classes: Array


def kernel(
    phi: Phi,
    correlation: ArrayLike,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    width: int,
    depth: int,
) -> Kernel:
    """The kernel of two inputs of a correlation, by the number of layers from 1 to `depth`.

    With a = E phi(u1) phi(u2) and s = E phi'(u1) phi'(u2) in each layer, a pre-activation's kernel
    is H_1 = width c + 1 and H_(l+1) = width a_l + 1 + sigma_w² s_l H_l, and an output's is
    width a_l + s_l H_l: Jacot et al. 2018, theorem 1, in the standard parametrisation. What two
    inputs differ by is followed, not the small difference of two kernels.
    """
    moments = gauss.moments(phi)
    weight = jnp.square(jnp.asarray(sigma_w, float))
    bias = jnp.square(jnp.asarray(sigma_b, float))

    def layer(state: Kernel, now: tuple[Array, Array]) -> Kernel:
        """Of what a layer hands on, from what its pre-activations have."""
        q, epsilon = now
        slope, (apart, lost) = moments.slope_square(q), _gaps(moments, q, epsilon)
        gap = width * apart + slope * state.gap + lost * (state.same - state.gap)
        return Kernel(width * moments.square(q) + slope * state.same, gap)

    def step(
        carry: tuple[Kernel, Array, Array], _: None
    ) -> tuple[tuple[Kernel, Array, Array], Kernel]:
        before, q, epsilon = carry
        after = layer(before, (q, epsilon))
        later = meanfield.V(phi, q, sigma_w, sigma_b)
        apart = _gaps(moments, q, epsilon)[0]
        parted = weight * apart / later
        # The output's row has the variance 1/width, a layer's sigma_w²/width.
        activity = width * moments.square(q), width * apart
        same = activity[0] + 1 + weight * (after.same - activity[0])
        gap = activity[1] + weight * (after.gap - activity[1])
        return (Kernel(same, gap), later, parted), after

    apart = 1 - jnp.asarray(correlation, float)
    q_1 = weight + bias
    first = Kernel(jnp.asarray(width + 1.0), width * apart)
    start = (first, q_1, weight * apart / q_1)
    return jax.lax.scan(step, start, None, length=depth)[1]


def _gaps(moments: gauss.Moments, q: Array, epsilon: Array) -> tuple[Array, Array]:
    """The gaps of phi and of phi' at c = 1 - epsilon, however small it is.

    A quadrature of squared differences has no digit left where epsilon is the square of a rounding:
    before, they go on in proportion to epsilon, that of phi' at kinks to its root.
    """
    if not isinstance(moments, gauss.Quadrature):
        return moments.gap(q, epsilon), moments.slope_gap(q, epsilon)
    held = jnp.maximum(epsilon, _finfo(epsilon.dtype).eps ** 0.75)
    less = epsilon / held
    lost = moments.slope_gap(q, held) * (jnp.sqrt(less) if moments.kinks else less)
    return moments.gap(q, held) * less, lost


def rates(
    within: Kernel, between: Kernel, num_classes: int, batch_size: int, num_examples: int
) -> Rates:
    """The eigenvalues, from the kernel within a class and between two, of classes of equal size.

    The matrix of all kernels has one value on the diagonal, one within classes and one between:
    its eigenvalues are those of block matrices, over the number of examples of which it is made.
    """
    share = 1 / num_classes
    off = within.same - share * within.gap - (1 - share) * between.gap
    own = within.gap
    largest = off + own / batch_size
    return Rates(largest, share * (between.gap - within.gap) + own / num_examples)


class Problem(NamedTuple):
    """What is to be learned, as far as the theory asks.

    Attributes:
        correlations: `(2,)` the mean correlation of inputs within a class, and between two.
        num_classes: of equal size.
        num_examples: all of them.
        batch_size: the examples of a step.
        num_steps: the steps.
    """

    correlations: Array
    num_classes: int
    num_examples: int
    batch_size: int
    num_steps: int


class Outlook(NamedTuple):
    """What plain gradient descent is in for, by the kernel at the start; each `(depth, num_rates)`.

    Attributes:
        edge: the step over the longest stable one, 2 over the largest curvature: Cohen et al. 2021.
        learned: by how many powers of e the classes part in all steps, at the rate or, beyond the
            edge, at the longest stable one, where it is half of the steps over the condition
            number that decides in Xiao et al. 2020, section 3.
    """

    edge: Array
    learned: Array


def outlook(
    phi: Phi,
    problem: Problem,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    width: int,
    depth: int,
    rate: ArrayLike,
) -> Outlook:
    """The outlook at each of `rate`, by the number of layers from 1 to `depth`.

    The curvature of the cross-entropy in the logits is 1/num_classes while no class is preferred.
    """

    def of_pair(correlation: Array) -> Kernel:
        return kernel(phi, correlation, sigma_w, sigma_b, width, depth)

    both = jax.vmap(of_pair)(problem.correlations)
    within, between = (Kernel(*(part[i, :, None] for part in both)) for i in (0, 1))
    found = rates(within, between, problem.num_classes, problem.batch_size, problem.num_examples)
    each = jnp.asarray(rate, float)[None] / problem.num_classes
    edge = each * found.largest / 2
    return Outlook(edge, problem.num_steps * each * found.classes / (1 + edge))


def evidence(
    phi: Phi,
    problem: Problem,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    width: int,
    depth: int,
    rate: ArrayLike,
) -> Array:
    """What is known of a training before step 1, four logs, `(depth, num_rates, 4)`.

    How far the classes part in all steps, `learned`; how far a step is beyond the longest stable
    one, 1 + `edge`; that once more if phi grows as its input, so that outputs may run away; and the
    depth over the width, by which a kernel differs from that of infinite width: Hanin and Nica
    2020b, theorem 1.
    """
    found = outlook(phi, problem, sigma_w, sigma_b, width, depth, rate)
    beyond = jnp.log1p(found.edge)
    # What a format cannot hold counts as the smallest number that it holds.
    learned = jnp.log(jnp.maximum(found.learned, _finfo(beyond.dtype).tiny))
    deep = jnp.log(jnp.arange(1, depth + 1) / width)[:, None] + jnp.zeros_like(beyond)
    return jnp.stack([learned, beyond, gauss.degree(phi) * beyond, deep], axis=-1)
