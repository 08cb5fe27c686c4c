"""Models that nobody here wrote, as their authors initialise them, each with a batch and a loss.

They come from the packages of tests/zoo.lock, which only the tests install.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from tests.diagnosis.sick import Case, classified, cross_entropy, labelled, tokens

KEY = jax.random.key(11)


def images(num: int = 8, size: int = 16, last: bool = False) -> Any:
    """A batch of images, channels first or last, and of labels."""
    shape = (num, size, size, 3) if last else (num, 3, size, size)
    return jax.random.normal(KEY, shape), jnp.arange(num) % 10


def sequences(num: int = 8, length: int = 12, width: int = 6) -> Any:
    """A batch of sequences and of labels."""
    return jax.random.normal(KEY, (num, length, width)), jnp.arange(num) % 10


def batched(model: Any, batch: Any) -> Array:
    """The loss of a classifier that takes a whole batch."""
    return cross_entropy(model(batch[0]), batch[1])


def equinox_mlp() -> Case:
    return eqx.nn.MLP(16, 10, 32, 2, key=KEY), labelled(16, 16), classified


class Recurrent(eqx.Module):
    """A recurrent cell over time, and a linear readout of its last state."""

    cell: Any
    head: eqx.nn.Linear

    def __call__(self, x: Array) -> Array:
        size = self.cell.hidden_size
        start = jnp.zeros(size)
        cell: Any = self.cell
        pair = isinstance(cell, eqx.nn.LSTMCell)
        state, _ = jax.lax.scan(
            lambda s, x: (cell(x, s), None), (start, start) if pair else start, x
        )
        last: Any = state
        return self.head(last[0] if pair else last)


def equinox_gru() -> Case:
    return (
        Recurrent(eqx.nn.GRUCell(6, 16, key=KEY), eqx.nn.Linear(16, 10, key=KEY)),
        sequences(),
        classified,
    )


def equinox_lstm() -> Case:
    return (
        Recurrent(eqx.nn.LSTMCell(6, 16, key=KEY), eqx.nn.Linear(16, 10, key=KEY)),
        sequences(),
        classified,
    )


def equinox_cnn() -> Case:
    k = jax.random.split(KEY, 3)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=k[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(8, 16, 3, padding=1, key=k[1]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(1024, 10, key=k[2]),
        ]
    )
    return model, images(), classified


class Stacked(eqx.Module):
    """Layers stacked along a first axis, one `jax.lax.scan` over them."""

    layers: Any
    head: eqx.nn.Linear

    def __call__(self, x: Array) -> Array:
        arrays, static = eqx.partition(self.layers, eqx.is_array)

        def step(x: Array, arrays: Any) -> tuple[Array, None]:
            layer = eqx.combine(arrays, static)
            return x + 0.5 * jax.nn.relu(layer(x)), None

        return self.head(jax.lax.scan(step, x, arrays)[0])


def equinox_scanned() -> Case:
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(16, 16, key=key))
    return (
        Stacked(make(jax.random.split(KEY, 5)), eqx.nn.Linear(16, 10, key=KEY)),
        labelled(16, 16),
        classified,
    )


def flax_mlp() -> Case:
    from flax import nnx

    rngs = nnx.Rngs(0)
    parts: list[Any] = [
        nnx.Linear(16, 32, rngs=rngs),
        nnx.relu,
        nnx.Linear(32, 32, rngs=rngs),
        nnx.relu,
    ]
    return nnx.Sequential(*parts, nnx.Linear(32, 10, rngs=rngs)), labelled(16, 16), batched


def flax_cnn() -> Case:
    from flax import nnx

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(3, 8, (3, 3), rngs=rngs),
        nnx.BatchNorm(8, rngs=rngs),
        nnx.relu,
        nnx.Conv(8, 8, (3, 3), rngs=rngs),
        nnx.BatchNorm(8, rngs=rngs),
        nnx.relu,
        lambda x: x.mean((1, 2)),
        nnx.Dropout(0.1, rngs=rngs),
        nnx.Linear(8, 10, rngs=rngs),
    )
    return model, images(last=True), batched


def flax_transformer() -> Case:
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, width: int, rngs: Any) -> None:
            self.norm1, self.norm2 = (
                nnx.LayerNorm(width, rngs=rngs),
                nnx.LayerNorm(width, rngs=rngs),
            )
            self.attn = nnx.MultiHeadAttention(
                num_heads=2, in_features=width, decode=False, rngs=rngs
            )
            self.up, self.down = (
                nnx.Linear(width, 4 * width, rngs=rngs),
                nnx.Linear(4 * width, width, rngs=rngs),
            )

        def __call__(self, x: Array) -> Array:
            mask = nnx.make_causal_mask(x[..., 0])
            x = x + self.attn(self.norm1(x), mask=mask)
            return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.embed = nnx.Embed(64, 32, rngs=rngs)
            self.blocks = nnx.List([Block(32, rngs) for _ in range(3)])
            self.norm = nnx.LayerNorm(32, rngs=rngs)
            self.head = nnx.Linear(32, 64, rngs=rngs)

        def __call__(self, tokens: Array) -> Array:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return Model(nnx.Rngs(0)), tokens(), lambda m, b: cross_entropy(m(b)[:, :-1], b[:, 1:])


def equimo_vit() -> Case:
    from equimo.models.vit import VisionTransformer

    model = VisionTransformer(
        img_size=16,
        in_channels=3,
        dim=32,
        patch_size=4,
        num_heads=2,
        depths=[3],
        num_classes=10,
        key=KEY,
    )
    keys = jax.random.split(KEY, 8)

    def loss(model: Any, batch: Any) -> Array:
        logits = jax.vmap(lambda x, k: model(x, key=k, inference=True))(batch[0], keys)
        return cross_entropy(logits, batch[1])

    return model, images(), loss


def jaxonmodels_vit() -> Case:
    from jaxonmodels.models.vit import VisionTransformer

    def loss(model: Any, batch: Any) -> Any:
        return classified(lambda x: model(x)[0], batch)  # the rest is its state

    return VisionTransformer(16, 4, 32, 3, 2, 10, key=KEY), images(), loss


def mamba2() -> Case:
    from flax import nnx
    from mamba2_jax import modeling

    config = modeling.Mamba2Config(
        vocab_size=64, hidden_size=32, state_size=8, head_dim=8, chunk_size=8, num_hidden_layers=3
    )
    model = modeling.Mamba2ForCausalLM(config, rngs=nnx.Rngs(0))

    def loss(model: Any, batch: Array) -> Array:
        out = model(batch)
        logits = out["logits"] if isinstance(out, dict) else out
        return cross_entropy(logits[:, :-1], batch[:, 1:])

    return model, tokens(), loss


def megalodon() -> Case:
    from megalodon_jax import MegalodonConfig, MegalodonForCausalLM

    config = MegalodonConfig(
        vocab_size=64,
        model_dim=32,
        num_layers=3,
        num_heads=2,
        z_dim=16,
        value_dim=32,
        ffn_hidden_dim=64,
        cema_ndim=4,
        chunk_size=16,
        norm_num_groups=4,
    )
    model = MegalodonForCausalLM(config, key=KEY)

    def loss(model: Any, batch: Array) -> Array:
        logits = model(batch)[0]
        return cross_entropy(logits[:, :-1].astype(jnp.float32), batch[:, 1:])

    return model, tokens(), loss


def penzai_mlp() -> Case:
    import penzai
    from penzai import pz
    from penzai.models import simple_mlp

    del penzai
    model = simple_mlp.MLP.from_config(KEY, [16, 32, 32, 10])
    slots = pz.unbind_params(model, freeze=True)

    def loss(params: Any, batch: Any) -> Array:
        model = pz.bind_variables(slots[0], params)
        x = pz.nx.wrap(batch[0]).tag("batch", "features")
        return cross_entropy(model(x).unwrap("batch", "features"), batch[1])

    return slots[1], labelled(16, 16), loss


def penzai_llama() -> Case:
    from penzai import pz
    from penzai.models.transformer.variants import llamalike_common as common

    config = common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=1,
        embedding_dim=32,
        projection_dim=16,
        mlp_hidden_dim=64,
        num_decoder_blocks=3,
        vocab_size=64,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
        rope_wavelength=10_000,
        rms_norm_eps=1e-6,
        attention_type=common.AttentionTypeGlobalCausal(),
        use_post_attn_norm=False,
        use_post_ffw_norm=False,
        final_logit_softcap=None,
        attn_logits_soft_cap=None,
        query_scaling_factor="default",
        parameter_dtype=jnp.float32,
        activation_dtype=jnp.float32,
    )
    model = common.build_llamalike_transformer(config, KEY)
    bare, params = pz.unbind_params(model, freeze=True)

    def loss(params: Any, batch: Array) -> Array:
        model = pz.bind_variables(bare, params)
        x = pz.nx.wrap(batch).tag("batch", "seq")
        positions = pz.nx.wrap(jnp.arange(batch.shape[1])).tag("seq")
        logits = model(x, token_positions=positions).unwrap("batch", "seq", "vocabulary")
        return cross_entropy(logits[:, :-1], batch[:, 1:])

    return params, tokens(), loss


MODELS: dict[str, Callable[[], Case]] = {
    "equinox MLP": equinox_mlp,
    "equinox GRU": equinox_gru,
    "equinox LSTM": equinox_lstm,
    "equinox CNN": equinox_cnn,
    "equinox scanned": equinox_scanned,
    "flax MLP": flax_mlp,
    "flax CNN": flax_cnn,
    "flax transformer": flax_transformer,
    "equimo ViT": equimo_vit,
    "jaxonmodels ViT": jaxonmodels_vit,
    "mamba2-jax": mamba2,
    "megalodon-jax": megalodon,
    "penzai MLP": penzai_mlp,
    "penzai Llama": penzai_llama,
}
