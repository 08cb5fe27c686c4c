"""Heavy libraries under their usual names, imported at first use, so that `--help` answers at once.

An experiment writes `from gradlab.lazy import jax, jnp` where it would write `import jax`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import xarray as xr
else:
    from importlib import import_module
    from types import ModuleType

    class _AtFirstUse(ModuleType):
        def __getattr__(self, name: str) -> object:
            return getattr(import_module(self.__name__), name)

    jax, jnp, np, optax, xr = map(_AtFirstUse, ("jax", "jax.numpy", "numpy", "optax", "xarray"))

__all__ = ["jax", "jnp", "np", "optax", "xr"]
