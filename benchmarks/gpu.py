"""What holds on a GPU, and what it costs there: claims, arithmetic, clip, products and audit.

`python benchmarks/gpu.py` runs each part in a process of its own and writes
`results/benchmarks/gpu.md`; `python benchmarks/gpu.py PART` runs one. Rivals are called in turn,
each call is waited for, and ratios are medians within a round. Runs on any device of JAX.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "benchmarks" / "gpu.md"
FULL = (
    *("scalar_chain", "random_network", "jacobian_product", "clipping"),
    *("singular_value_spectrum", "float_limits"),
)
# Thresholds of one timed program.
TURNS = 16
# Several processes share the device: none takes all of its memory beforehand.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def table(head: str, rows: Iterator[list[str]]) -> Iterator[str]:
    """A table's lines, each as soon as it is known."""
    names = head.split(", ")
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield f"| {' | '.join(row)} |"


# ---- what holds


def smoke() -> Iterator[str]:
    """The claims of every experiment at its smallest scale."""
    names = sorted(file.stem for file in (ROOT / "experiments").glob("*.py"))
    yield "Every experiment at its smallest scale, several at a time:"
    yield ""
    yield from judged(names, "smoke", jobs=max(1, (os.cpu_count() or 1) * 3 // 4))


def published() -> Iterator[str]:
    """The claims of some experiments as published."""
    yield "As published, all at a time:"
    yield ""
    yield from judged(FULL, "full", jobs=len(FULL))


def judged(names: Any, scale: str, jobs: int) -> Iterator[str]:
    """A table with the verdicts of these experiments."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        rows = pool.map(partial(verdict, Path(folder), scale), names)
        yield from table("experiment, claims that hold, seconds, what fails", rows)


def verdict(folder: Path, scale: str, name: str) -> list[str]:
    """One experiment's row: how many of its claims hold, and each that fails with its numbers."""
    words = [sys.executable, str(ROOT / "experiments" / f"{name}.py")]
    words += [f"scale={scale}", f"results={folder}"]
    env = os.environ | SHARED
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=env)
    found = sorted((folder / name).rglob("claims.json"))
    if not found:
        return [name, "none", "", f"no run: {done.stderr.strip().splitlines()[-1]}"]
    claims = json.loads(found[0].read_text())["claims"]
    seconds = json.loads(found[0].with_name("run.json").read_text())["wall_time_seconds"]
    failed = "; ".join(map(told, (claim for claim in claims if claim["verdict"] != "holds")))
    holding = sum(claim["verdict"] == "holds" for claim in claims)
    return [name, f"{holding} of {len(claims)}", f"{seconds:.1f}", failed]


def told(claim: dict[str, Any]) -> str:
    """A claim that fails, with its numbers."""
    causes = ", ".join(f"{cause} {amount:.3g}" for cause, amount in claim["tolerance"].items())
    return (
        f"{claim['sentence']}: {claim['measured']} {claim['relation']} {claim['expected']} "
        f"({causes or 'no tolerance'}; {claim['at']})"
    )


# ---- the arithmetic


def arithmetic() -> Iterator[str]:
    """How the device computes: roundings, subnormal numbers, and what its compiler leaves out."""
    import jax

    jax.config.update("jax_enable_x64", True)
    yield "Arithmetic, over 10^6 random numbers from 1/2 to 2 held against the CPU's:"
    yield ""
    yield from table("format, operation, not rounded to nearest, most ulps", roundings())
    yield ""
    yield from facts()


def roundings() -> Iterator[list[str]]:
    """How often and how far an operation is off what a longer format gives, by format."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    for dtype, wide in (("float32", np.float64), ("float64", np.longdouble)):
        x, y = rng.uniform(0.5, 2, (2, 10**6)).astype(dtype)
        for name in ("divide", "sqrt", "exp", "log", "tanh"):
            given = (x, y) if name == "divide" else (x,)
            found = np.asarray(jax.jit(getattr(jax.numpy, name))(*given)).astype(wide)
            exact = getattr(np, name)(*(a.astype(wide) for a in given))
            # A processor rounds these two right; rounded twice, they may be off.
            rounded_once = name in {"divide", "sqrt"}
            nearest = getattr(np, name)(*given) if rounded_once else exact.astype(dtype)
            # Of the float that is nearest: of one at a power of two the larger.
            ulp = np.spacing(np.abs(nearest)).astype(wide)
            share = np.mean(found != nearest.astype(wide))
            yield [dtype, name, f"{share:.2%}", f"{np.max(np.abs(found - exact) / ulp):.2f}"]


def facts() -> Iterator[str]:
    """What a format keeps, in sentences."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    one = jnp.ones(())
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        tiny = jnp.finfo(dtype).tiny
        half = jax.jit(lambda x, tiny=tiny: jnp.asarray(tiny, x.dtype) * (x / 2))(one.astype(dtype))
        flushed = (np.asarray(half).view(f"u{half.dtype.itemsize}") == 0).all()
        yield f"- half of the smallest normal number of {dtype} is {'0' if flushed else 'kept'}"
    x = np.random.default_rng(1).uniform(0.5, 2, 1000).astype("float32")
    cut = jax.jit(lambda x: x.astype(jnp.bfloat16).astype(x.dtype))(x)
    yield f"- float32 to bfloat16 and back is {'the number itself' if (cut == x).all() else 'kept'}"
    matrices = np.random.default_rng(2).normal(size=(2, 512, 512)).astype("float32")
    exact = matrices[0].astype(float) @ matrices[1].astype(float)
    for precision in ("default", "highest"):
        product = jax.jit(partial(jnp.matmul, precision=precision))(*matrices)
        off = np.linalg.norm(np.asarray(product, float) - exact) / np.linalg.norm(exact)
        yield f"- a product of float32 matrices of width 512, precision {precision}: {off:.1e} off"


# ---- what it costs


def clip() -> Iterator[str]:
    """The clip by the global norm beside those of optax and torch, as part of a larger program."""
    yield f"Clipping by the global norm {TURNS} times in one program, each time what is left of the"
    yield "last; torch's works in place, one call after the other, and multiplies also below tau:"
    yield ""
    head = "dtype, numbers, leaves, clip, optax (µs), gradlab / optax, torch / optax"
    yield from table(f"{head}, monitored / gradlab", clip_rows())


def clip_rows() -> Iterator[list[str]]:
    """A row for each format, size and side of the threshold."""
    import clipping
    import jax
    import numpy as np

    sizes = [("float32", 10**6, 6), ("float32", 10**6, 50), ("float32", 10**7, 50)]
    sizes += [("float32", 10**8, 50), ("bfloat16", 10**7, 50)]
    for dtype, num, num_leaves in sizes:
        grads = clipping.tree(num, num_leaves, dtype)
        programs = repeated(grads)
        for state, taus in (("fires", 0.9 ** np.arange(TURNS)), ("does not", np.full(TURNS, 1e6))):
            given = taus.astype(jax.numpy.dtype(dtype))
            calls = {name: partial(program, given) for name, program in programs.items()}
            times = in_turn(calls | torch_clip(grads, given), 0.5)
            yield [
                *(dtype, f"{num:.0e}", str(num_leaves), state),
                f"{1e6 * statistics.median(times['optax']) / TURNS:.0f}",
                f"{ratio(times, 'gradlab', 'optax'):.2f}",
                f"{ratio(times, 'torch', 'optax'):.2f}" if "torch" in times else "not installed",
                f"{ratio(times, 'monitored', 'gradlab'):.2f}",
            ]


def repeated(grads: Any) -> dict[str, Callable[[Any], object]]:
    """What clips a tree to one threshold after the other, by name, compiled side by side."""
    import jax
    import optax

    import gradlab as gl

    def monitored(tau: Any) -> Any:
        return gl.clipping.monitor(gl.clipping.clip_by_global_norm(tau), TURNS)

    def program(make: Any) -> Callable[[Any], object]:
        def one(held: Any, tau: Any) -> Any:
            return make(tau).update(*held), None

        state = make(1.0).init(grads)
        many = jax.jit(lambda grads, taus: jax.lax.scan(one, (grads, state), taus)[0])
        # optax takes a traced threshold in the gradient's format alone.
        dtype = jax.tree.leaves(grads)[0].dtype
        compiled = many.lower(grads, jax.ShapeDtypeStruct((TURNS,), dtype)).compile()
        return lambda taus: jax.block_until_ready(compiled(grads, taus))

    makers = {
        "optax": optax.clip_by_global_norm,
        "gradlab": gl.clipping.clip_by_global_norm,
        "monitored": monitored,
    }
    with ThreadPoolExecutor() as pool:
        return dict(zip(makers, pool.map(program, makers.values()), strict=True))


def torch_clip(grads: dict[str, Any], taus: Any) -> dict[str, Callable[[], object]]:
    """The clip of torch on the same device, where torch has it."""
    import clipping
    import jax

    torch: Any = clipping.torch
    if torch is None:
        return {}
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    parameters = []
    for leaf in grads.values():
        kind = getattr(torch, leaf.dtype.name)
        parameters.append(torch.zeros(leaf.shape, dtype=kind, device=device, requires_grad=True))
        parameters[-1].grad = torch.randn(leaf.shape, device=device).to(kind)

    def call() -> None:
        for tau in map(float, taus):
            torch.nn.utils.clip_grad_norm_(parameters, tau)
        if on_gpu:
            torch.cuda.synchronize()

    return {"torch": call}


def in_turn(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """The times of all, each called untimed just before, for so many seconds or 11 rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    while min(map(len, times.values())) < 11 or time.perf_counter() - started < seconds:
        for name, call in calls.items():
            call()
            before = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - before)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """The median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def step() -> Iterator[str]:
    """A step of training behind each clip, and under a watch."""
    import jax
    import optax
    import watch

    import gradlab as gl

    clips: dict[str, Any] = {
        "no clip": optax.identity(),
        "optax's clip": optax.clip_by_global_norm(1e-3),
        "gradlab's clip": gl.clipping.clip_by_global_norm(1e-3),
        "gradlab's clip, monitored": gl.clipping.monitor(
            gl.clipping.clip_by_global_norm(1e-3), 100
        ),
    }
    rules = {name: optax.chain(rule, optax.adam(1e-3)) for name, rule in clips.items()}
    rules["no clip, watched"] = gl.watch(optax.adam(1e-3))
    params = watch.weights(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (watch.BATCH, watch.LENGTH), 0, watch.VOCAB)
    with ThreadPoolExecutor() as pool:  # compiled side by side
        steppers = pool.map(lambda rule: watch.stepper(rule, params, tokens), rules.values())
        calls = dict(zip(rules, steppers, strict=True))
    times = in_turn(calls, 3)
    size = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    yield (
        f"A step of Adam, {watch.DEPTH} blocks of width {watch.WIDTH}, {watch.BATCH} x "
        f"{watch.LENGTH} tokens, {size:.1f} million weights in float32:"
    )
    yield ""
    rows = (
        [name, f"{1e3 * statistics.median(spent):.2f}", f"{ratio(times, name, 'no clip'):.3f}"]
        for name, spent in times.items()
    )
    yield from table("step, milliseconds, over no clip", rows)


def products() -> Iterator[str]:
    """Products of Jacobians beside their rivals: numpy on the host, the others on the device."""
    import jacobian_products as rivals
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    yield "Products of Jacobians in float64, numpy's rivals on one core of the host:"
    yield ""
    rows = (
        [
            *(str(row["depth"]), str(row["width"]), row["method"]),
            *(f"{row['milliseconds']:.3g}", f"{row['over BLAS chain']:.2f}"),
        ]
        for row in rivals.products([(100, 32), (100, 128)], 2)
    )
    yield from table("depth, width, method, ms, over BLAS chain", rows)


def audit() -> Iterator[str]:
    """An audit beside the gradient that it explains."""
    import audit as audits

    yield f"An audit: {audits.speed()}."


PARTS = {
    part.__name__: part for part in (smoke, published, arithmetic, clip, step, products, audit)
}


def device() -> Iterator[str]:
    """What this runs on."""
    import jax
    import numpy as np
    import optax

    versions = f"jax {jax.__version__}, numpy {np.__version__}, optax {optax.__version__}"
    yield f"{jax.devices()[0].device_kind}; {versions}; Python {sys.version.split()[0]}."


def main() -> None:
    """Print one part, or all of them, and then write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["device", *PARTS])
    parser.add_argument("--into", type=Path, default=RECORD)
    options = parser.parse_args()
    if options.part:
        for line in {"device": device, **PARTS}[options.part]():
            print(line, flush=True)
        return
    told_by = [apart(part) for part in ("device", *PARTS)]
    options.into.write_text(
        "\n\n".join(["# On a GPU: what holds, and what it costs", *told_by]) + "\n"
    )


def apart(part: str) -> str:
    """What a part prints, in a process of its own, shown as it comes."""
    words = [sys.executable, __file__, part]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        lines = []
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines).strip() or f"The part '{part}' failed."


if __name__ == "__main__":
    main()
