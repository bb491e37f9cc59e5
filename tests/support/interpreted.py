"""Triton's interpreter, without what it does over and over: two thirds of the time of a step."""

from types import FunctionType


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
