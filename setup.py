"""A wheel brings along the lab that `korlab new lab` makes: its files are copied into the package when it is built."""

import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class Build(build_py):
    """Modules and package data, and beside them `korlab/template`; an editable install finds the files in the checkout."""

    def run(self):
        super().run()
        target = Path(self.build_lib) / "korlab" / "template"
        if self.editable_mode:
            return
        shutil.rmtree(target, ignore_errors=True)
        for pattern in tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["tool"]["korlab"]["lab"]:
            for file in HERE.glob(pattern):
                to = target / file.relative_to(HERE)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, to)


setup(cmdclass={"build_py": Build})
