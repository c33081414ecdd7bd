"""Kernel names that a human can read: C++ signatures cut down to what tells kernels apart."""

from __future__ import annotations

import re

__all__ = ["short_name"]

_NAMESPACES = re.compile(
    r"\(anonymous namespace\)::|<unnamed>::"
    r"|\b(?:at::native|at::cuda|c10::cuda|cutlass|std|thrust|cub)::(?:\w+::)*"
)
_RETURN_TYPE = re.compile(r"^(?:void|static|auto|int|bool|float)\s+")
# The operation that a generic kernel (elementwise_kernel, reduce_kernel) is made for stands among its
# template arguments.
_OPERATION = re.compile(r"\b(?!gpu_kernel_impl)\w*(?:Functor|_kernel_cuda|_kernel_impl|Ops)\w*")


def short_name(name: str, limit: int = 80) -> str:
    """The kernel's own name, with the operation it is made for in angle brackets where templates name one.

    `void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, ...>(int, ...)`
    becomes `vectorized_elementwise_kernel<CUDAFunctor_add>`. Names that are no C++ signature stay as they are;
    what is still longer than *limit* loses its middle.
    """
    plain = _NAMESPACES.sub("", name.strip())
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
