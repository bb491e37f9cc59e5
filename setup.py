"""Builds the compiled backends; everything static is in pyproject.toml, sources and flags in csrc/native_build.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import native_build as native  # noqa: E402

PACKAGE = "greedylr_fused"
REPORT = "_build.json"  # read by the backends, to say why one is missing


class NativeBuild(build_ext):
    """Compiles through ninja. A missing compiler leaves a working package that knows why it has no CPU backend."""

    def run(self) -> None:
        report = {}
        try:
            compiler = native.find_compiler()
            report["_cpu"] = {"built": True, "reason": f"compiled with {' '.join(compiler)}"}
        except native.NoCompiler as missing:
            for stale in self.get_outputs():  # of an earlier build in the same tree
                Path(stale).unlink(missing_ok=True)
            self.extensions = []
            report["_cpu"] = {"built": False, "reason": str(missing)}
            self.warn(f"the CPU backend is not built: {missing}")
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
        native.build(
            compiler,
            [native.python_binding(), *native.cpu_objects(compiler)],
            output,
            ROOT / "build" / f"cpu-{self.plat_name}-{sys.implementation.cache_tag}",
            flags=(*native.SPEED, *native.WARNINGS, *native.VISIBILITY),
            link_flags=native.module_link_flags(),
        )


sources = [f"csrc/{name}" for name in (native.CPU_BINDING, *native.CPU_SOURCES, native.CPU_LOOPS)]
setup(ext_modules=[Extension(f"{PACKAGE}._cpu", sources)], cmdclass={"build_ext": NativeBuild})
