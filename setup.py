"""Builds the compiled backends; everything static is in pyproject.toml, sources and flags in csrc/native_build.py."""

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

PACKAGE = "greedylr_fused"
REPORT = "_build.json"  # read by the backends, to say why one is missing


#: The compiled modules, with their sources and what builds their objects for a compiler.
MODULES: dict[str, tuple[tuple[str, ...], Callable[[list[str]], list[native.Object]]]] = {
    "_cpu": (
        (native.CPU_BINDING, *native.CPU_SOURCES, native.CPU_LOOPS),
        lambda compiler: [native.python_unit(native.CPU_BINDING), *native.cpu_objects(compiler)],
    ),
    "_host": ((native.HOST_BINDING, *native.HOST_SOURCES), lambda compiler: native.host_objects()),
}


class NativeBuild(build_ext):
    """Compiles through ninja. A missing compiler leaves a working package that knows why it has no such modules."""

    def run(self) -> None:
        try:
            compiler = native.find_compiler()
            report = {name: {"built": True, "reason": f"compiled with {' '.join(compiler)}"} for name in MODULES}
        except native.NoCompiler as missing:
            for stale in self.get_outputs():  # of an earlier build in the same tree
                Path(stale).unlink(missing_ok=True)
            self.extensions = []
            report = {name: {"built": False, "reason": str(missing)} for name in MODULES}
            self.warn(f"{' and '.join(MODULES)} are not built: {missing}")
        super().run()
        in_source = self.inplace or self.editable_mode
        package = ROOT / PACKAGE if in_source else Path(self.build_lib) / PACKAGE
        package.mkdir(parents=True, exist_ok=True)
        (package / REPORT).write_text(json.dumps(report, indent=2) + "\n")

    def build_extension(self, ext: Extension) -> None:
        """Objects stay in build/, so that the next build compiles only what changed."""
        compiler = native.find_compiler()
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        name = ext.name.rpartition(".")[2]
        native.build(
            compiler,
            MODULES[name][1](compiler),
            output,
            ROOT / "build" / f"{name.lstrip('_')}-{self.plat_name}-{sys.implementation.cache_tag}",
            flags=(*native.SPEED, *native.WARNINGS, *native.VISIBILITY),
            link_flags=native.module_link_flags(),
        )


extensions = [
    Extension(f"{PACKAGE}.{name}", [f"csrc/{source}" for source in sources]) for name, (sources, _) in MODULES.items()
]
setup(ext_modules=extensions, cmdclass={"build_ext": NativeBuild})
