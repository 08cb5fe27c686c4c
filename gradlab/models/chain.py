"""The object under study: a chain of layers, its states and its exact per-layer Jacobians.

A chain knows nothing of randomness (`ensembles`) or of prediction (`theory`). Layers are
counted from 1, as in the product `J_L ... J_1`; `z_0` is the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import precision
from gradlab.models import callables

Layer = callables.Layer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chain:
    """`depth` layers `z_k = layer(params_k, z_{k-1})` that share one function and one width.

    `params` is any pytree whose leaves have a leading axis `depth`, so that `jax.lax.scan`
    compiles one layer whatever the depth. A chain of depth 1 may change the width.
    """

    layer: Layer = field(metadata={"static": True})
    params: Any

    @property
    def depth(self) -> int:
        """The number of layers."""
        return int(jax.tree_util.tree_leaves(self.params)[0].shape[0])

    def __call__(self, x: Array) -> Array:
        """The output of the last layer."""
        if self.depth == 1:
            return self.layer(params_at(self.params, 0), x)
        return jax.lax.scan(lambda z, params: (self.layer(params, z), None), x, self.params)[0]


# What the functions of this laboratory accept: one chain, or a sequence of chains and of plain
# callables (closures, Equinox or Flax modules), each one layer, of any widths that fit. Their bool,
# int and key leaves are part of them and are not differentiated.
Model = Chain | Sequence[Callable[[Array], Array]]

# What is asked of each layer: that it can be pushed forward, pulled back, or only applied.
Derivative = Literal["forward", "reverse", "no"]


def params_at(params: Any, layer: int | Array) -> Any:
    """The parameters of one layer: `params` without its leading axis."""
    return jax.tree.map(lambda leaf: leaf[layer], params)


def apply_linear(W: Array, z: Array) -> Array:
    """`W z`: the layer of a linear chain, whose Jacobian is `W` itself."""
    return W @ z


@overload
def linear(matrices: Array) -> Chain: ...
@overload
def linear(matrices: Sequence[Array | Callable[[Array], Array]]) -> list[Chain]: ...
def linear(matrices: Array | Sequence[Array | Callable[[Array], Array]]) -> Chain | list[Chain]:
    """The chain whose layers, and so whose Jacobians, are the given matrices.

    Args:
        matrices: `(depth, width, width)`, or a sequence of matrices whose shapes chain; modules
            (`eqx.nn.Linear`) stand for theirs, and it is meant that nothing is between them.
    """
    if not isinstance(matrices, Sequence):
        return Chain(apply_linear, matrices)
    return [
        _as_chain(W, is_meant=True) if callable(W) else Chain(apply_linear, W[None])
        for W in matrices
    ]


def depth(model: Model) -> int:
    """The number of layers of a model."""
    return sum(segment.depth for segment in segments(model))


def widths(model: Model, x: Array) -> tuple[int, ...]:
    """The widths of the states at the segments' ends, the input's first."""
    state = jax.eval_shape(jnp.asarray, x)
    sizes = [state.size]
    for segment in segments(model):
        state = jax.eval_shape(segment, state)
        sizes.append(state.size)
    return tuple(sizes)


def segments(model: Model) -> tuple[Chain, ...]:
    """The model as uniform chains, in order; neighbours that share a layer are stacked.

    A module that is a pytree (Equinox, `jax.tree_util.Partial`) keeps its arrays as parameters,
    and a run of alike modules becomes one chain; a closure becomes a chain of depth 1 without
    parameters.
    """
    if isinstance(model, Chain):
        return (model,)
    if not isinstance(model, Iterable):
        raise TypeError(
            f"A model is a Chain or a sequence of callables, not {type(model).__name__}; "
            "one callable alone is given as [callable]."
        )
    parts: list[Chain] = []
    for part in map(_as_chain, model):
        if parts and _stackable(parts[-1], part):
            params = jax.tree.map(
                lambda *leaves: jnp.concatenate(leaves), parts[-1].params, part.params
            )
            parts[-1] = Chain(parts[-1].layer, params)
        else:
            parts.append(part)
    if not parts:
        raise ValueError("A model has at least one layer; this one has none.")
    return tuple(parts)


def checked(model: Model, x: Array, derivative: Derivative = "forward") -> tuple[Chain, ...]:
    """The `segments` of a model that `x` goes through, after every check made at the door.

    Args:
        model: the chain.
        x: its input.
        derivative: what is asked of each layer. One that has only a rule of its own for going back
            (`jax.custom_vjp`) has a "reverse" one alone.

    Raises:
        TypeError: for a complex dtype, an integer state, or a layer without that derivative.
        ValueError: for shapes that do not chain, weights that are not finite, where known, or
            bare affine modules that follow one another, as an MLP's without its activations do.
    """
    if jnp.ndim(x) != 1:
        raise ValueError(
            f"A chain takes one vector, not an input of shape {jnp.shape(x)}; "
            "a batch goes through jax.vmap, an image is flattened."
        )
    _check_dtype("The input", x)
    parts = segments(model)
    state = jax.eval_shape(jnp.asarray, x)
    first, bare = 1, None
    for part in parts:
        _check_params(part, first)
        params = jax.eval_shape(partial(params_at, layer=0), part.params)
        output = _checked_output(part, params, state, first, derivative)
        if type(model) in {list, tuple}:
            before, bare = bare, callables.bare(part.layer, params, state)
            _refuse_lost_activation(before, bare, part.depth, first)
        state = output
        first += part.depth
    return parts


def real_part(gradient: Any) -> Any:
    """A gradient with None in the place of leaves that are not differentiated: bools, ints, keys.

    `jax.vjp` has numbers without a size there, which no loop stacks.
    """
    return jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, gradient)


@precision.highest
def states(model: Model, x: Array) -> Any:
    """The input and the output of every layer: `(depth + 1, width)`.

    For a sequence, whose widths may differ, a tuple of `depth + 1` vectors.
    """
    parts = checked(model, x, "no")
    if isinstance(model, Chain):
        return _states(model, x)
    seen = [x]
    for part in parts:
        seen += list(_outputs(part, seen[-1]))
    return tuple(seen)


@precision.highest
def jacobians(model: Model, x: Array) -> Any:
    """The Jacobian of every layer at the states that `x` gives: `(depth, width, width)`.

    For a sequence, whose widths may differ, a tuple of `depth` matrices.
    """
    parts = checked(model, x)
    stacks = []
    for part in parts:
        inputs = layer_inputs(part, x)
        stacks.append(jax.vmap(jax.jacfwd(part.layer, argnums=1))(part.params, inputs))
        x = part(x)
    if isinstance(model, Chain):
        return stacks[0]
    return tuple(J for stack in stacks for J in stack)


def layer_inputs(chain: Chain, x: Array) -> Array:
    """The input of every layer, `(depth, width)`."""
    return x[None] if chain.depth == 1 else _states(chain, x)[:-1]


def _outputs(chain: Chain, x: Array) -> Array:
    """The output of every layer, `(depth, width)`."""
    if chain.depth == 1:
        return chain(x)[None]
    return jax.lax.scan(lambda z, params: (chain.layer(params, z),) * 2, x, chain.params)[1]


def _states(chain: Chain, x: Array) -> Array:
    """The input and the output of every layer, `(depth + 1, width)`."""
    outputs = _outputs(chain, x)
    if outputs.shape[1:] != x.shape:
        raise ValueError(
            f"The states of a chain from width {x.size} to width {outputs.shape[1]} are not one "
            "array; give the model as [chain]."
        )
    return jnp.concatenate([x[None], outputs])


def _as_chain(element: Any, is_meant: bool = False) -> Chain:
    """One element of a sequence as a chain."""
    if isinstance(element, Chain):
        return element
    if not callable(element):
        raise TypeError(
            f"A model's layers are Chains or callables; one of them is a {type(element).__name__}."
        )
    return Chain(*callables.taken_apart(element, is_meant))


def _stackable(one: Chain, other: Chain) -> bool:
    """Whether two neighbours are the same layer with parameters of the same shapes."""
    return one.layer == other.layer and _signature(one.params) == _signature(other.params)


def _signature(params: Any) -> Any:
    leaves, treedef = jax.tree_util.tree_flatten(params)
    return treedef, [(leaf.shape[1:], leaf.dtype) for leaf in leaves]


def _check_dtype(name: str, value: Any) -> None:
    dtype = value.dtype if hasattr(value, "dtype") else jnp.asarray(value).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {dtype}; derivatives need a real floating dtype.")


def _check_params(chain: Chain, first: int) -> None:
    """Raise unless the parameters are stacked, and finite where their values are known."""
    leaves = jax.tree_util.tree_leaves(chain.params)
    lengths = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(
            f"The parameters of the chain that starts at layer {first} have leading axes "
            f"{sorted(lengths)}; all must have the same one, its depth, at least 1."
        )
    for leaf in leaves:
        # A bool, an int or a key belongs to the layer; a matrix of ints is no weight.
        if not callables.is_constant(leaf) or chain.layer is apply_linear:
            _check_dtype(f"A weight of layer {first}", leaf)
            _check_finite(leaf, first)


def _check_finite(leaf: Any, first: int) -> None:
    if isinstance(leaf, jax.core.Tracer):
        return
    finite = np.isfinite(np.asarray(leaf)).reshape(leaf.shape[0], -1).all(axis=1)
    if not finite.all():
        raise ValueError(f"Layer {first + int(np.argmin(finite))} has a weight that is not finite.")


def _checked_output(
    chain: Chain, params: Any, state: Any, first: int, derivative: Derivative
) -> Any:
    """The shape and dtype after a segment, or the error that names its first layer."""
    try:
        output = jax.eval_shape(partial(_APPLIED[derivative], chain.layer), params, state)[0]
    except Exception as error:
        raise _refusal(chain.layer, params, state, first, derivative, error) from error
    if not isinstance(output, jax.ShapeDtypeStruct) or len(output.shape) != 1:
        raise ValueError(f"Layer {first} must give one vector, not {output}.")
    _check_dtype(f"The output of layer {first}", output)
    if output.dtype != state.dtype:
        raise TypeError(
            f"Layer {first} takes {state.dtype} and gives {output.dtype}; one chain has one dtype."
        )
    if chain.depth > 1 and output.shape != state.shape:
        raise ValueError(
            f"Layer {first} takes {state.shape} and gives {output.shape}, so the layers of this "
            "chain do not chain; a chain deeper than 1 keeps its width."
        )
    return output


def _with_jacobian(layer: Layer, params: Any, z: Array) -> tuple[Array, Array]:
    return layer(params, z), jax.jacfwd(partial(layer, params))(z)


def _with_row(layer: Layer, params: Any, z: Array) -> tuple[Array, Array]:
    output, pull_back = jax.vjp(partial(layer, params), z)
    return output, pull_back(output)[0]


def _alone(layer: Layer, params: Any, z: Array) -> tuple[Array]:
    return (layer(params, z),)


# What is traced to know that a layer has what is asked of it.
_APPLIED: dict[Derivative, Callable[..., Any]] = {
    "forward": _with_jacobian,
    "reverse": _with_row,
    "no": _alone,
}


def _refusal(
    layer: Layer, params: Any, state: Any, first: int, derivative: Derivative, error: Exception
) -> Exception:
    """The error for a layer that cannot be traced: a wrong shape, or no derivative."""
    reason = str(error).strip().split("\n")[0]
    try:
        output = jax.eval_shape(layer, params, state)
    except Exception:
        return ValueError(f"Layer {first} does not take a state of shape {state.shape}: {reason}")
    if not isinstance(output, jax.ShapeDtypeStruct) or len(output.shape) != 1:
        return ValueError(f"Layer {first} must give one vector, not {output}.")
    return TypeError(f"Layer {first} has no {derivative} derivative: {reason}")


def _refuse_lost_activation(before: str | None, bare: str | None, depth: int, first: int) -> None:
    """Refuse bare affine modules with nothing between: a module's own layers, taken out of it."""
    if bare is None or (before is None and depth == 1):
        return
    one = first - 1 if before else first
    raise ValueError(
        f"Layers {one} and {one + 1} are {before or bare} and {bare} with nothing between, as the "
        "layers of an MLP are where its activation is left out; give [layers[0], activation, "
        "layers[1], ...], or gl.chain.linear(layers) if the chain is meant to be linear."
    )
