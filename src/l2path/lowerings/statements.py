"""The statements of a loop as inductor's C++ wrapper writes them, one a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NAME = r"[A-Za-z_]\w*"
VIEW = (
    rf"wrap_with_raii_handle_if_needed\(reinterpret_tensor_wrapper\("
    rf"(?P<of>{NAME}), (\d+), ({NAME}), ({NAME}), ([^()]*)\)\)"
)
WHOLE = VIEW.replace("[^()]*", "0L")  # a view that begins where the value does
_CHECK = r"AOTI_TORCH_ERROR_CODE_CHECK"
# Operations that make tensors of their own, or write into what they are given: nothing that shares memory with it.
_OPERATIONS = (r"\w+_out", "convolution", "convolve", "convolve_weight", "max_pool", r"native_\w+")
_PATTERNS = {
    "nothing": r"|//.*|AtenTensorHandle \w+;|bool \w+_scalar;",
    "array": r"static constexpr int64_t \*?(?P<name>\w+?)(?:\[\])?\s?=\s?(?P<numbers>nullptr|\{[\dL, ]*\});",
    "alias": rf"{_CHECK}\(aoti_torch_assign_tensors_out\((?P<of>{NAME}), &(?P<name>\w+)_handle\)\);",
    "owner": r"RAIIAtenTensorHandle (?P<name>\w+)\((?P=name)_handle\);",
    "empty": rf"{_CHECK}\(aoti_torch_empty_strided\((?P<axes>\d+), (?P<sizes>\w+), (?P<strides>\w+), "
    r"cached_torch_dtype_(?P<dtype>\w+), cached_torch_device_type_cpu, 0, &(?P<name>\w+)_handle\)\);",
    "product": rf"{_CHECK}\(aoti_torch_cpu_tiled_b?mm\((?P<operands>.*), &(?P<name>\w+)_handle\)\);",
    "operation": rf"{_CHECK}\(aoti_torch_cpu_(?:{'|'.join(_OPERATIONS)})\(.*\)\);",
    "kernel": r"cpp_fused_\w+\(.*\);",
    "reset": rf"(?P<name>{NAME})\.reset\(\);",
    "renamed": rf"auto (?P<name>\w+) = std::move\((?P<of>{NAME})\);  // reuse",
    "viewed": rf"auto (?P<name>\w+) = (?P<view>{WHOLE}); (?P=of)\.reset\(\);  // reuse",
    "part": rf"auto (?P<name>\w+) = (?P<view>{VIEW});  // alias",
    "shared": rf"{_CHECK}\(aoti_torch_new_tensor_handle\((?P<of>{NAME}), &(?P<name>tmp_\w+)\)\);",
    "handed": rf"(?P<name>{NAME}) = std::move\((?P<of>{NAME})\);",
    "handed_viewed": rf"(?P<name>{NAME}) = std::move\((?P<view>{WHOLE})\);",
    "layout": rf"assert_size_stride\((?P<name>{NAME}), (?P<sizes>\{{[\dL, ]*\}}), "
    r"(?P<strides>\{[\dL, ]*\}), .*\);",
    "number": rf"{_CHECK}\(aoti_torch_item_(?P<type>\w+)\((?P<of>{NAME}), &(?P<name>\w+)\)\);",
    "declared": r"int64_t \w+_raw;",
    "named": r"auto \w+ = \w+_raw;",
    "refused": r"if \(!\(?.*\)?\) (break;|\{ throw .*\})",
}


class UnknownStatement(Exception):
    """A statement that is none of these, or that stands where it is not expected."""


@dataclass(frozen=True)
class Statement:
    """A line: which of the patterns it is, and its parts by name."""

    kind: str
    text: str
    parts: dict[str, str]


def read(lines: Sequence[str]) -> Iterator[Statement]:
    """Yield the statements of these lines.

    Raises
    ------
    UnknownStatement
        For a line that is none.
    """
    for line in lines:
        text = line.strip()
        for kind, pattern in _PATTERNS.items():
            if match := re.fullmatch(pattern, text):
                yield Statement(kind, text, {k: v for k, v in match.groupdict().items() if v is not None})
                break
        else:
            raise UnknownStatement(text)


def arrays(lines: Sequence[str]) -> dict[str, list[int]]:
    """Return the arrays of sizes and strides that are written down in these lines, whatever else is."""
    found = (re.fullmatch(_PATTERNS["array"], line.strip()) for line in lines)
    return {match["name"]: numbers(match["numbers"]) for match in found if match}


def numbers(text: str) -> list[int]:
    """Return the numbers in a pair of braces."""
    return [] if text == "nullptr" else [int(n) for n in re.findall(r"\d+", text)]
