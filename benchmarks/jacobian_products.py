"""Jacobian products: gradlab beside its rivals, in one run, with medians and CPU time.

    python benchmarks/jacobian_products.py [--quick] [--into results/benchmarks]

Needs only jax and numpy; torch and matplotlib are used where they are installed. On a CPU the
process gets one core, and so every library one thread. All rivals of a row are called in turn,
again and again, so that whatever else the machine does hits all of them alike; each runs untimed
for 10 milliseconds just before it is timed, so that no rival pays for what the one before left in
the caches, nor for a thread of its own that has slept since and takes the core at every turn. A
ratio is the median of the ratios within a round.
On a CPU the clock is the process's CPU time, elsewhere it is the wall clock.
"""

# ruff: noqa: E402  (threads are counted when a library is imported, so that has to be set first)

from __future__ import annotations

import cores

cores.one(min)

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
try:
    import gradlab
except ModuleNotFoundError:
    # Where only jax and numpy are installed, the package is its folder.
    gradlab = types.ModuleType("gradlab")
    gradlab.__path__ = [str(ROOT / "gradlab")]
    sys.modules["gradlab"] = gradlab

from gradlab.measuring import jacobians, spectra
from gradlab.models import chain
from gradlab.models.activations import PHI

try:
    import torch

    torch.set_num_threads(1)
except ModuleNotFoundError:
    torch = None

# A call is timed by what it computes, not by how it is handed over; read when a device is named.
jax.config.update("jax_cpu_enable_async_dispatch", False)
DEVICE = jax.devices()[0]
CLOCK = time.process_time if DEVICE.platform == "cpu" else time.perf_counter
Rivals = dict[str, Callable[[], object]]


def tanh_layer(W, z):
    """One layer of a deep tanh network without biases."""
    return PHI["tanh"](W @ z)


def relu_layer(W, z):
    """One layer of a deep ReLU network, which leaves fewer directions from layer to layer."""
    return PHI["relu"](W @ z)


def weights(depth, width):
    """The weights and the input of a network that neither dies nor saturates."""
    rng = np.random.default_rng(0)
    W = 1.2 * rng.normal(size=(depth, width, width)) / width**0.5
    return W, rng.normal(size=width)


def jacobians_of(W, x):
    """The Jacobians, which the numpy rivals are given for nothing."""
    J = []
    for w in W:
        h = w @ x
        x = np.tanh(h)
        J.append(w / np.cosh(h)[:, None] ** 2)
    return J


def blas_chain(J):
    """The practical limit: the last product alone, from given Jacobians."""
    P = J[0]
    for j in J[1:]:
        P = j @ P
    return P


def qr_loop(J):
    """Lyapunov exponents as they are commonly computed."""
    Q, logs = np.eye(len(J[0])), 0
    for j in J:
        Q, R = np.linalg.qr(j @ Q)
        logs = logs + np.log(np.abs(np.diag(R)))
    return logs / len(J)


def torch_rivals(W, x):
    """The Jacobian of the whole chain by torch, in both modes, where torch is installed."""
    if torch is None:
        return {}
    from torch.func import jacfwd, jacrev

    on_gpu = DEVICE.platform == "gpu" and torch.cuda.is_available()
    Ws, z = (torch.from_numpy(a).to("cuda" if on_gpu else "cpu") for a in (W, x))

    def whole(z):
        for w in Ws:
            z = torch.tanh(w @ z)
        return z

    def finished(jacobian):
        jacobian(whole)(z)
        if on_gpu:
            torch.cuda.synchronize()

    return {
        "torch.func.jacrev": partial(finished, jacrev),
        "torch.func.jacfwd": partial(finished, jacfwd),
    }


def rivals(depth, width):
    """What is timed at one depth and width, by name; the first is the unit."""
    W, x = weights(depth, width)
    J = jacobians_of(W, x)
    z = jnp.asarray(x)
    tanh, relu = (chain.Chain(layer, jnp.asarray(W)) for layer in (tanh_layer, relu_layer))
    spectrum = jax.jit(lambda m, x: spectra.singular_values(m, x, (depth,)))
    return {
        "numpy BLAS chain, J given": lambda: blas_chain(J),
        "gradlab, log-norms at every depth": partial(finish, jax.jit(jacobians.log_norms), tanh, z),
        "gradlab, all singular values": partial(finish, spectrum, tanh, z),
        "gradlab, all singular values, ReLU": partial(finish, spectrum, relu, z),
        "jax.jacfwd of the chain": partial(finish, jax.jit(lambda m, x: jax.jacfwd(m)(x)), tanh, z),
        "numpy QR loop, J given": lambda: qr_loop(J),
        "LAPACK SVD of the BLAS chain": lambda: np.linalg.svd(blas_chain(J), compute_uv=False),
        **torch_rivals(W, x),
    }


def finish(function, *arguments):
    """Call and wait for the result."""
    return jax.block_until_ready(function(*arguments))


def timed(functions: Rivals, seconds: float) -> dict[str, list[float]]:
    """The times of every rival, called in turn for about so many seconds in all."""
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    started = time.perf_counter()
    while len(times[next(iter(times))]) < 5 or time.perf_counter() - started < seconds:
        for name, function in functions.items():
            warm_up(function)
            before = CLOCK()
            function()
            times[name].append(CLOCK() - before)
        if time.perf_counter() - started > 4 * seconds:
            break
    return times


def warm_up(function: Callable[[], object], seconds: float = 1e-2) -> None:
    """Call a rival untimed, at least once."""
    started = time.perf_counter()
    function()
    while time.perf_counter() - started < seconds:
        function()


def ratio(times, one, other):
    """The median over rounds of the ratio of two times."""
    pairs = zip(times[one], times[other], strict=True)
    return statistics.median(a / b for a, b in pairs)


def products(grid, seconds):
    """One row a method at every depth and width."""
    rows = []
    for depth, width in grid:
        times = timed(rivals(depth, width), seconds)
        unit = next(iter(times))
        rows += [
            {
                "depth": depth,
                "width": width,
                "method": name,
                "milliseconds": 1e3 * statistics.median(times[name]),
                "over BLAS chain": ratio(times, name, unit),
                "over numpy QR loop": ratio(times, name, "numpy QR loop, J given"),
                "rounds": len(times[name]),
            }
            for name in times
        ]
        print(f"depth {depth}, width {width}", file=sys.stderr, flush=True)
    return rows


def every_depth(seconds, width=32, depths=100):
    """All depths in one pass against one jitted call a depth, warm and with compilation."""
    W, x = weights(depths, width)
    W, x = jnp.asarray(W), jnp.asarray(x)

    def scanned(W, x):
        return log_norm(jax.jacfwd(chain.Chain(tanh_layer, W))(x))

    def unrolled(W, x):
        def whole(z):
            for w in W:
                z = tanh_layer(w, z)
            return z

        return log_norm(jax.jacfwd(whole)(x))

    def log_norm(J):
        return jnp.log(jnp.linalg.norm(J))

    def one_pass(W, x):
        return jacobians.log_norms(chain.Chain(tanh_layer, W), x)

    def last(W, x):
        return one_pass(W, x)[-1]

    each = {
        "gradlab, log-norms": last,
        "jax.jacfwd of a scanned chain": scanned,
        "jax.jacfwd of layers in a Python loop": unrolled,
    }
    # Compiling a hundred programs takes minutes: one depth in ten stands for ten.
    some = range(5, depths, 10)
    weight = depths / len(some)
    rows = []
    for name, function in each.items():
        at_one, at_each = jax.jit(one_pass), jax.jit(function)
        calls = {
            "one": partial(finish, at_one, W, x),
            "each": partial(call_each, at_each, [W[:k] for k in some], x),
        }
        cold = {}
        for which, call in calls.items():
            jax.clear_caches()
            before = CLOCK()
            call()
            cold[which] = CLOCK() - before
        rows.append(
            {
                "width": width,
                "depths": depths,
                "a call a depth": name,
                "warm, times faster": weight * ratio(timed(calls, seconds), "each", "one"),
                "cold, times faster": weight * cold["each"] / cold["one"],
            }
        )
        print(f"every depth, {name}", file=sys.stderr, flush=True)
    return rows


def call_each(function, parts, x):
    """One call for every part of a chain."""
    for part in parts:
        finish(function, part, x)


def compile_times(depths, rounds=3):
    """Seconds to compile the all-depth pass, cold and from the persistent cache: medians."""

    def seconds(depth):
        W, x = weights(depth, 16)
        model, z = chain.Chain(tanh_layer, jnp.asarray(W)), jnp.asarray(x)
        jax.clear_caches()
        lowered = jax.jit(jacobians.log_norms).lower(model, z)
        before = CLOCK()
        lowered.compile()
        return CLOCK() - before

    # A cache that was there once is never quite gone: what is cold comes first.
    cold = {depth: [seconds(depth) for _ in range(rounds)] for depth in depths}
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        for depth in depths:
            seconds(depth)
        cached = {depth: [seconds(depth) for _ in range(rounds)] for depth in depths}
    jax.config.update("jax_compilation_cache_dir", None)
    return [
        {
            "depth": depth,
            "cold": statistics.median(cold[depth]),
            "from cache": statistics.median(cached[depth]),
        }
        for depth in depths
    ]


def markdown(report):
    """The report as tables."""
    lines = [
        "# Jacobian products: cost beside the rivals",
        "",
        f"{report['device']}. {report['versions']}. float64, one thread a library; "
        f"clock: {report['clock']}; medians over interleaved rounds.",
        "",
        "| depth | width | method | ms | over BLAS chain | over numpy QR loop |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['depth']} | {row['width']} | {row['method']} | {row['milliseconds']:.3g} | "
        f"{row['over BLAS chain']:.2f} | {row['over numpy QR loop']:.3f} |"
        for row in report["products"]
    ]
    passes = report["every depth"]
    lines += [
        "",
        f"All {passes[0]['depths']} depths in one pass (width {passes[0]['width']}) instead of one "
        "jitted call a depth:",
        "",
        "| what is called at each depth | times faster warm | times faster with compilation |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['a call a depth']} | {row['warm, times faster']:.0f} | "
        f"{row['cold, times faster']:.0f} |"
        for row in passes
    ]
    lines += [
        "",
        "| depth | compilation, seconds | from the persistent cache, seconds |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['depth']} | {row['cold']:.3f} | {row['from cache']:.3f} |"
        for row in report["compilation"]
    ]
    return "\n".join(lines) + "\n"


def figure(report, path):
    """Cost against width at depth 100, and against depth at width 32."""
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError:
        return
    rows = report["products"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    styles = dict(
        zip(
            methods,
            ("k-", "C0o-", "C1s-", "C1P:", "C2^--", "C3v--", "C4d:", "C5x-.", "C6+-."),
            strict=False,
        )
    )
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for panel, across, fixed, value in zip(
        panels, ("width", "depth"), ("depth", "width"), (100, 32), strict=True
    ):
        for method in methods:
            points = sorted(
                (r[across], r["milliseconds"])
                for r in rows
                if r["method"] == method and r[fixed] == value
            )
            panel.loglog(*zip(*points, strict=True), styles[method], label=method, markersize=4)
        panel.set_xlabel(across)
        panel.set_title(f"{fixed} {value}", fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"{report['clock']} (ms)")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside right center",
        fontsize="small",
        frameon=False,
    )
    figure.savefig(path, dpi=150)


def device_name():
    """What this ran on, in words."""
    if DEVICE.platform != "cpu":
        return DEVICE.device_kind
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(
            line.split(":")[1].strip() for line in text.splitlines() if "model name" in line
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def main():
    """Measure, write the tables and the figure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one second a row")
    parser.add_argument("--into", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    seconds = 1 if options.quick else 4
    grid = [(100, width) for width in (8, 16, 32, 64, 128)] + [(10, 32), (1000, 32)]
    report = {
        "device": device_name(),
        "versions": ", ".join(
            [f"jax {jax.__version__}", f"numpy {np.__version__}"]
            + ([f"torch {torch.__version__}"] if torch else [])
        ),
        "clock": "CPU time" if CLOCK is time.process_time else "wall time",
        "products": products(grid[:2] if options.quick else grid, seconds),
        "every depth": every_depth(seconds, depths=20 if options.quick else 100),
        "compilation": compile_times((10, 100, 1000, 10_000)),
    }
    options.into.mkdir(parents=True, exist_ok=True)
    (options.into / "jacobian_products.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.into / "jacobian_products.md").write_text(markdown(report))
    if not options.quick:
        figure(report, options.into / "jacobian_products.png")
    print(markdown(report))


if __name__ == "__main__":
    main()
