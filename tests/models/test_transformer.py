"""Transformer blocks against their formulas in numpy, and against what no weights can change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.models import chain, transformer

TOKENS, WIDTH, DEPTH = 3, 6, 2
X = jax.random.normal(jax.random.key(1), (TOKENS, WIDTH))


def drawn(sigma_q: float = 1.0) -> transformer.Weights:
    return transformer.weights(jax.random.key(0), DEPTH, WIDTH, sigma_q)


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)


def heads(w: transformer.Weights, x: np.ndarray) -> np.ndarray:
    """Attention by loops over tokens, as it is written."""
    out = np.zeros_like(x)
    for i in range(len(x)):
        power = [np.exp((w.Q @ x[i]) @ (w.K @ x[j]) / np.sqrt(WIDTH)) for j in range(len(x))]
        out[i] = sum(p * (w.V @ x[j]) for j, p in enumerate(power)) / sum(power)
    return out


def rectified(w: transformer.Weights, x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ np.asarray(w.W_1).T, 0) @ np.asarray(w.W_2).T


WRITTEN = {
    "Post": lambda f, x: norm(x + f(x)),
    "Pre": lambda f, x: x + f(norm(x)),
    "Peri": lambda f, x: x + norm(f(norm(x))),
    "reordered": lambda f, x: x + norm(f(x)),
}


@pytest.fixture(scope="module")
def ends() -> dict[str, np.ndarray]:
    """The tokens behind two blocks of each design, by one compiled program."""
    names = list(transformer.DESIGNS)
    stacked = transformer.Design(*map(jnp.array, zip(*transformer.DESIGNS.values(), strict=True)))
    run = jax.jit(jax.vmap(lambda design: transformer.encoder(drawn(), design)(X.ravel())))
    return dict(zip(names, np.asarray(run(stacked)), strict=True))


@pytest.mark.parametrize("name", list(transformer.DESIGNS))
def test_a_design_is_what_its_paper_writes(name: str, ends: dict[str, np.ndarray]) -> None:
    x = np.asarray(X)
    for k in range(DEPTH):
        w = jax.tree.map(np.asarray, chain.params_at(drawn(), k))
        x = WRITTEN[name](lambda x, w=w: heads(w, x), x)
        x = WRITTEN[name](lambda x, w=w: rectified(w, x), x)

    np.testing.assert_allclose(ends[name], x.ravel(), rtol=1e-11)


def test_without_queries_every_token_takes_the_same_of_each() -> None:
    w = chain.params_at(drawn(0.0), 0)

    np.testing.assert_allclose(transformer.attention_matrix(w, X), 1 / TOKENS, rtol=1e-14)
    np.testing.assert_allclose(
        transformer.attention(w, X), np.tile(w.V @ X.mean(0), (TOKENS, 1)), rtol=1e-11
    )


def test_a_layer_norm_keeps_no_mean_and_no_size_and_stands_aside_where_it_is_off() -> None:
    y = transformer.layer_norm(X)

    np.testing.assert_allclose(np.asarray(y).mean(1), 0, atol=1e-15)
    np.testing.assert_allclose(np.asarray(y).std(1), 1, rtol=1e-14)
    np.testing.assert_array_equal(transformer.layer_norm(X, 0.0), X)
    assert bool(jnp.isnan(transformer.layer_norm(jnp.ones((1, WIDTH)))).all())


def test_a_norm_that_is_off_leaves_the_gradient_of_equal_entries_finite() -> None:
    slope = jax.grad(lambda x: jnp.sum(transformer.layer_norm(x, 0.0)))(jnp.ones((1, WIDTH)))

    np.testing.assert_array_equal(slope, 1)


def test_a_reader_reads_every_part_of_an_image_at_its_place() -> None:
    made = transformer.reader(jax.random.key(2), DEPTH, WIDTH, TOKENS, 7, 4)
    image = jax.random.normal(jax.random.key(3), (7,))
    places = jax.random.permutation(jax.random.key(4), TOKENS)
    x = np.asarray(image[:6]).reshape(TOKENS, 2) @ np.asarray(made.E).T + np.asarray(made.places)

    np.testing.assert_allclose(transformer.embedded(made, image), norm(x), rtol=1e-11)
    # The tokens' order is known by their places alone: all moved together, nothing changes.
    moved = image.at[:6].set(image[:6].reshape(TOKENS, 2)[places].ravel())
    design = transformer.DESIGNS["Pre"]
    logits, again = (
        transformer.classify(design, one, at)
        for one, at in ((made, image), (made._replace(places=made.places[places]), moved))
    )
    assert logits.shape == (4,)
    np.testing.assert_allclose(again, logits, rtol=1e-11)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 1 - 1e-9])
def test_tokens_alike_are_so_exactly(correlation: float) -> None:
    x = transformer.correlated(jax.random.key(0), 5, 12, correlation)
    gram = x @ x.T / 12
    expected = correlation + (1 - correlation) * np.eye(5)
    np.testing.assert_allclose(gram, expected, atol=1e-14)
    np.testing.assert_allclose(transformer.apartness(x), 1 - correlation, rtol=1e-6)


def test_overlaps_are_those_of_the_rows_pair_by_pair() -> None:
    weights = chain.params_at(transformer.weights(jax.random.key(1), 1, 12, 2.0), 0)
    x = transformer.correlated(jax.random.key(2), 4, 12, 0.3)
    p = np.asarray(transformer.attention_matrix(weights, x))
    pairs = [p[i] @ p[k] for i in range(4) for k in range(4) if i != k]
    found = transformer.overlaps(weights, x)
    np.testing.assert_allclose(found, [np.mean([row @ row for row in p]), np.mean(pairs)])
