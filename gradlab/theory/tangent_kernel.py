"""The tangent kernel at infinite width: how fast gradient descent moves what a deep chain says.

A step of rate eta on the loss of one example moves an output at another by eta times the kernel,
the sum over all parameters of both outputs' derivatives: Jacot, Gabriel and Hongler 2018. Layers
are phi(W z + b), W_ij ~ N(0, sigma_w²/width), b ~ N(0, sigma_b²), and an output is a row of
variance 1/width times the last of them; all parameters are trained as they stand, so that the
kernel grows with the width (the standard parametrisation of Lee et al. 2019). How its eigenvalues
depend on depth in order and in chaos: Xiao, Pennington and Schoenholz 2020, section 3.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.models.activations import Phi
from gradlab.theory import gauss, meanfield


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
    held = jnp.maximum(epsilon, jnp.finfo(epsilon.dtype).eps ** 0.75)
    less = epsilon / held
    lost = moments.slope_gap(q, held) * (jnp.sqrt(less) if moments.kinks else less)
    return moments.gap(q, held) * less, lost


class Outlook(NamedTuple):
    """What plain gradient descent is in for, by the kernel at the start; each `(depth,)`.

    Attributes:
        edge: the step over the longest stable one, 2 over the largest curvature: Cohen et al. 2021.
        learned: by how many powers of e the classes part in all steps, at the rate or, beyond the
            edge, at the longest stable one: 2 learned / edge is steps over the condition number,
            which decides in Xiao et al. 2020, section 3.
    """

    edge: Array
    learned: Array


def outlook(rates: Rates, rate: ArrayLike, num_steps: int, num_classes: int) -> Outlook:
    """The outlook at a learning rate, of the cross-entropy of `num_classes` classes.

    Its curvature in the logits is 1/num_classes while no class is preferred.
    """
    each = jnp.asarray(rate, float) / num_classes
    edge = each * rates.largest / 2
    return Outlook(edge, num_steps * each * rates.classes / (1 + edge))


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
