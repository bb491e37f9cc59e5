"""Triton's interpreter, without what it does over and over: two thirds of the time of a step."""

from dataclasses import replace
from types import FunctionType


def skip_overflow_checks() -> None:
    """Leave out the comparison of each sum and product of 32-bit integers with one of 64 bits, a third of the time of a
    step: the tensors of these tests are thousands of times too short for it to fail.
    """
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    if getattr(builder.options, "sanitize_overflow", False):
        builder.options = replace(builder.options, sanitize_overflow=False)


def patch_once() -> None:
    """Let the interpreter put its functions in the place of the language's once for the functions of each module.

    By itself it does so at every launch and at every call of a function within one, by going through all names of the
    language, though from the second time on there is nothing to replace. Kernels run the same functions either way.
    """
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):  # a version that may restore in another way
        return
    patch, modules = interpreter._patch_lang, set()

    def once(function: FunctionType) -> object:
        if id(function.__globals__) not in modules:
            modules.add(id(function.__globals__))
            patch(function)
        return interpreter._LangPatchScope()  # of nothing, so that nothing is restored

    interpreter._patch_lang = once
