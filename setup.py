"""What pyproject.toml cannot say of a build: what becomes of it where the kernels do not compile.

Such a build succeeds, and its wheel has the tag of pure Python, so that it never passes for the one with
kernels. With ``REGKIT_REQUIRE_KERNELS=1`` it fails instead. And on Windows clang-cl compiles them, as they
are written in the C of gcc and clang.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildKernels(build_ext):
    def run(self) -> None:
        required = os.environ.get("REGKIT_REQUIRE_KERNELS", "0")
        if required not in ("0", "1"):
            raise SystemExit(f"REGKIT_REQUIRE_KERNELS is {required!r}; it may be 0 or 1")
        if required == "1":
            for extension in self.extensions:
                extension.optional = False
        super().run()

    def build_extensions(self) -> None:
        if self.compiler.compiler_type == "msvc":
            if not self.compiler.initialized:
                self.compiler.initialize()
            self.compiler.cc = shutil.which("clang-cl") or "clang-cl"
            for extension in self.extensions:
                extension.extra_compile_args = [f"/clang:{flag}" for flag in extension.extra_compile_args]
                extension.extra_link_args = []
        super().build_extensions()


class Wheel(bdist_wheel):
    def run(self) -> None:
        self.run_command("build")
        built = self.get_finalized_command("build_ext").get_outputs()
        if not any(Path(path).is_file() for path in built):
            self.root_is_pure = True
        super().run()


setup(cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel})
