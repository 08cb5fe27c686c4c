"""What pyproject.toml cannot say: a wheel carries the published experiments and their configs.

They stand once, at the top of the repository, and are copied while a wheel is built; an editable
installation reads them where they are.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PUBLISHED = ("experiments/*.py", "configs/**/*.yaml")


class BuildWithPublished(build_py):
    """Python modules as ever, and behind them `gradlab/published`."""

    def run(self) -> None:
        """Build, and copy what is published."""
        super().run()
        if not self.editable_mode:
            for source, target in self._published():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The files that are built."""
        return [*super().get_outputs(include_bytecode), *(to for _, to in self._published())]

    def _published(self) -> list[tuple[str, str]]:
        place = Path(self.build_lib) / "gradlab" / "published"
        found = sorted(path for pattern in PUBLISHED for path in Path().glob(pattern))
        return [(str(path), str(place / path)) for path in found]


setup(cmdclass={"build_py": BuildWithPublished})
