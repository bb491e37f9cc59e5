"""Builds the compiled modules; everything static is in pyproject.toml, sources and flags in csrc/native_*.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import native_build as native  # noqa: E402
import native_cuda  # noqa: E402

PACKAGE = "greedylr_fused"
REPORT = "_build.json"  # read by the backends, to say why one is missing

#: What each module is made of, given the command of a C++ compiler.
MODULES: dict[str, Callable[[list[str]], native.Recipe]] = {
    "_cpu": native.cpu_recipe,
    "_host": native.host_recipe,
    "_cuda": native_cuda.recipe,
}


class NativeBuild(build_ext):
    """Compiles through ninja. What cannot be built leaves a working package that knows why it lacks the module.

    Attributes:
        report: for every module whether it was built, and with what or why not.
    """

    def run(self) -> None:
        self.report: dict[str, dict[str, object]] = {}
        self.demanded = {f"{PACKAGE}._cuda"} if native_cuda.wanted() else set()
        self.recipes: dict[str, native.Recipe] = {}
        for ext in self.extensions:
            try:
                self.recipes[ext.name] = MODULES[module(ext)](native.find_compiler())
            except native.Missing as missing:
                self._leave_out(ext, str(missing))
        wanted, self.extensions = self.extensions, [ext for ext in self.extensions if ext.name in self.recipes]
        super().run()
        for ext in wanted:
            if not self.report[module(ext)]["built"]:  # but perhaps at an earlier time in the same tree
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        in_source = self.inplace or self.editable_mode
        package = ROOT / PACKAGE if in_source else Path(self.build_lib) / PACKAGE
        package.mkdir(parents=True, exist_ok=True)
        (package / REPORT).write_text(json.dumps(self.report, indent=2) + "\n")

    def build_extension(self, ext: Extension) -> None:
        """Objects stay in build/, so that the next build compiles only what changed."""
        recipe = self.recipes[ext.name]
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            native.build(
                native.find_compiler(),
                recipe.objects,
                output,
                ROOT / "build" / f"{module(ext).lstrip('_')}-{self.plat_name}-{sys.implementation.cache_tag}",
                flags=(*native.SPEED, *native.WARNINGS, *native.VISIBILITY),
                link_flags=(*native.module_link_flags(), *recipe.link_flags),
            )
            self.report[module(ext)] = {"built": True, "reason": f"compiled with {recipe.compilers}"}
        except native.BuildFailed as failure:
            if not ext.optional:
                raise
            output.unlink(missing_ok=True)
            self._leave_out(ext, f"{recipe.compilers} failed: {native.first_error(str(failure))}")

    def _leave_out(self, ext: Extension, reason: str) -> None:
        if ext.name in self.demanded:
            raise native.BuildFailed(f"{native_cuda.SWITCH}=1 demands {ext.name}, and it cannot be built: {reason}")
        self.report[module(ext)] = {"built": False, "reason": reason}
        self.warn(f"{ext.name} is not built: {reason}")


def module(ext: Extension) -> str:
    """Its name without the package's."""
    return str(ext.name.rpartition(".")[2])


def sources(name: str) -> list[str]:
    """For setuptools to know of; what is compiled, and how, the recipes say."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / name.lstrip("_")).glob("*.c*"))


# Where nvcc exists but does not work, the rest is still of use.
extensions = [Extension(f"{PACKAGE}.{name}", sources(name), optional=name == "_cuda") for name in MODULES]
setup(ext_modules=extensions, cmdclass={"build_ext": NativeBuild})
