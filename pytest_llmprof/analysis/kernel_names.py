"""Short kernel names: C++ signatures without what does not tell kernels apart."""

from __future__ import annotations

import re

_UNNAMED = re.compile(r"\(anonymous namespace\)::|<unnamed>::")
_NAMESPACES = re.compile(
    rf"{_UNNAMED.pattern}"
    r"|\b(?:at::native|at::cuda|c10::cuda|cutlass|std|thrust|cub)::(?:\w+::)*"
)
_RETURN_TYPE = re.compile(r"^(?:void|static|auto|int|bool|float)\s+")
# The operation of a generic kernel (elementwise_kernel, reduce_kernel) is among its template arguments.
_OPERATION = re.compile(r"\b(?!gpu_kernel_impl)\w*(?:Functor|_kernel_cuda|_kernel_impl|Ops)\w*")

_ENABLED = re.compile(r"(?:std::)?enable_if<")
_MANGLED = re.compile(r"_Z(N?)(?=\d)")
_ANONYMOUS = "_GLOBAL__N_1"


def _demangled(name: str) -> str:
    """`cutlass::device_kernel<…>` for `_ZN7cutlass13device_kernelI...`, a mangled (Itanium) name; others as they are.

    torch leaves very long names mangled (CUTLASS's have over 1,000 letters).
    """
    begin = _MANGLED.match(name)
    if begin is None:
        return name
    parts, at = [], begin.end()
    while length := re.match(r"\d+", name[at:]):
        start = at + length.end()
        at = start + int(length[0])
        parts.append(name[start:at])
        if not begin[1]:
            break
    templated = name[at : at + 1] == "I"
    return "::".join(part for part in parts if part != _ANONYMOUS) + ("<…>" if templated else "")


def _without_return_type(name: str) -> str:
    """`internal::gemvx::kernel<...>(...)` for `std::enable_if<!T7, void>::type internal::gemvx::kernel<...>(...)`."""
    begin = _ENABLED.match(name)
    if begin is None:
        return name
    open_, at = 1, begin.end()
    while open_ and at < len(name):
        open_ += {"<": 1, ">": -1}.get(name[at], 0)
        at += 1
    return name[at:].removeprefix("::type").lstrip()


def _signature(name: str) -> str:
    return _without_return_type(_demangled(name.strip()))


def function_name(kernel: str) -> str:
    """The function's own name, as in ncu's `--kernel-name-base function`.

    Without return type, namespaces, template arguments and parameters.
    """
    plain = _UNNAMED.sub("", _signature(kernel))
    head = re.split(r"[<(]", plain, maxsplit=1)[0]
    return head.rpartition("::")[2].split(" ")[-1] or plain


def short_name(name: str, limit: int = 80) -> str:
    """The kernel's own name, with its operation in angle brackets where the template arguments name one.

    `void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, ...>(int, ...)`
    becomes `vectorized_elementwise_kernel<CUDAFunctor_add>`. Names that are no C++ signature stay as they are.
    A name longer than *limit* loses its middle.
    """
    plain = _NAMESPACES.sub("", _signature(name))
    plain = _RETURN_TYPE.sub("", plain)
    head = re.match(r"[\w:~$.@-]+", plain)
    if head is None or head.end() == len(plain):
        short = plain
    elif plain[head.end()] == "<":
        operation = _OPERATION.search(plain, head.end())
        short = f"{head[0]}<{operation[0] if operation else '…'}>"
    elif plain[head.end()] == "(":
        short = head[0]
    else:
        short = plain
    if len(short) > limit:
        front = (limit - 1) * 2 // 3
        short = f"{short[:front]}…{short[len(short) - (limit - 1 - front):]}"
    return short
