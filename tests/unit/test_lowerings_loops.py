"""Loops of compiled programs without tensors: which statements the pass knows, and where it lays values."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2path.lowerings import loops
from l2path.lowerings.loops import ALIGNED, Value, _lay_out, without_tensors
from l2path.lowerings.statements import UnknownStatement, arrays, read

CHECK = "AOTI_TORCH_ERROR_CODE_CHECK"
EMPTY = "cached_torch_dtype_float32, cached_torch_device_type_cpu, 0, &{0}_handle));"
BOOL = EMPTY.replace("float32", "bool")
# x = x + 1 until the counter is 4, as inductor writes it (torch 2.13); {} is where a test puts something in.
PROGRAM = f"""
#include <torch/csrc/inductor/cpp_wrapper/cpu.h>
void inductor_entry_impl(
    AtenTensorHandle* input_handles) {{{{
    AtenTensorHandle buf1_handle;
    {CHECK}(aoti_torch_assign_tensors_out(buf0, &buf1_handle));
    RAIIAtenTensorHandle buf1(buf1_handle);
    AtenTensorHandle buf2_handle;
    {CHECK}(aoti_torch_assign_tensors_out(arg0_1, &buf2_handle));
    RAIIAtenTensorHandle buf2(buf2_handle);
    while (1) {{{{
        AtenTensorHandle cond_arg0_handle;
        {CHECK}(aoti_torch_assign_tensors_out(buf1, &cond_arg0_handle));
        RAIIAtenTensorHandle cond_arg0(cond_arg0_handle);
        static constexpr int64_t *int_array_0=nullptr;
        AtenTensorHandle cond_buf0_handle;
        {CHECK}(aoti_torch_empty_strided(0, int_array_0, int_array_0, {BOOL.format("cond_buf0")}
        RAIIAtenTensorHandle cond_buf0(cond_buf0_handle);
        cpp_fused_lt_0((const int64_t*)(cond_arg0.data_ptr()), (bool*)(cond_buf0.data_ptr()));
        cond_arg0.reset();
        buf0_cond_result.reset();
        buf0_cond_result = std::move(cond_buf0);
        bool buf0_cond_result_scalar;
        {CHECK}(aoti_torch_item_bool(buf0_cond_result, &buf0_cond_result_scalar));
        if (!buf0_cond_result_scalar) break;
        AtenTensorHandle body_arg1_handle;
        {CHECK}(aoti_torch_assign_tensors_out(buf2, &body_arg1_handle));
        RAIIAtenTensorHandle body_arg1(body_arg1_handle);
        static constexpr int64_t int_array_1[] = {{{{3L, 2L}}}};
        static constexpr int64_t int_array_2[] = {{{{2L, 1L}}}};
        AtenTensorHandle body_buf0_handle;
        {CHECK}(aoti_torch_empty_strided(2, int_array_1, int_array_2, {EMPTY.format("body_buf0")}
        RAIIAtenTensorHandle body_buf0(body_buf0_handle);
        cpp_fused_add_1((const float*)(body_arg1.data_ptr()), (float*)(body_buf0.data_ptr()));
        body_arg1.reset();
        {{inside}}
        buf2.reset();
        buf2 = std::move({{handed}});
    }}}}
    output_handles[0] = buf2.release();
}}}}
"""


def program(inside: str = "", handed: str = "body_buf0") -> str:
    return PROGRAM.format(inside=inside, handed=handed)


def test_a_loop_makes_no_tensor() -> None:
    source = program()
    found = without_tensors(source)
    before, inside = found.split("while (1) {")
    assert loops.HEADER.read_text() in before
    assert before.index("struct Local") < before.index("void inductor_entry_impl(")
    assert "l2path_loop::Turns buf2_turns(6L, loop_float32);" in before
    inside, after = inside.split("\n    }\n")
    for makes_one in ("aoti_torch_empty_strided", "aoti_torch_assign_tensors_out", "RAIIAtenTensorHandle", "item_bool"):
        assert makes_one in source
        assert makes_one not in inside
    # What kernels are called, in which order and with what, stays.
    kernels = [line.strip() for line in source.split("\n") if "cpp_fused" in line]
    assert [line.strip() for line in inside.split("\n") if "cpp_fused" in line] == kernels
    assert "buf2_now = body_buf0;" in inside
    assert "buf2_turns.turn();" in inside
    assert "buf2_turns.leave(buf2, buf2_now);" in after


VIEW = "wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(body_buf0, 2, int_array_1, int_array_2, {}))"


@pytest.mark.parametrize(
    ("inside", "handed"),
    [
        ("something_new(body_buf0);", "body_buf0"),  # a statement that is not known
        (f"{CHECK}(aoti_torch_cpu_view_dtype(body_buf0, &body_buf1_handle));", "body_buf0"),  # might share its memory
        ("auto body_buf1 = std::move(body_arg1);  // reuse", "body_buf1"),  # writes where the last turn wrote
        (f"auto body_buf1 = {VIEW.format('2L')};  // alias", "body_buf1"),  # hands on a part only
        (f"auto body_buf1 = {VIEW.format('2L')}; body_buf0.reset();  // reuse", "body_buf1"),  # begins elsewhere
        ("buf1 = std::move(body_buf0);", "body_buf0"),  # one value in two places
        ("buf1 = std::move(body_arg1);", "body_buf0"),  # changes places
        ("RAIIAtenTensorHandle made(made_handle);\nbuf1 = std::move(made);", "made"),  # one tensor in two places
        ("buf1 = std::move(constant0);", "body_buf0"),  # comes from elsewhere
        (f"auto body_buf1 = {VIEW.format('0L').replace('body_buf0', 'constant0')};  // alias", "body_buf0"),
        (f"{CHECK}(aoti_torch_empty_strided(1, int_array_9, int_array_9, {EMPTY.format('body_buf1')}", "body_buf0"),
        ("while (1) {", "body_buf0"),
    ],
)
def test_what_it_does_not_know_stays_as_it_is(inside: str, handed: str) -> None:
    source = program(inside, handed)
    assert without_tensors(source) == source
    assert without_tensors(program()) != program()


@pytest.mark.parametrize(
    "source", ["void inductor_entry_impl() {\n}\n", program().replace(loops.ENTRY, "void run_impl(")]
)
def test_programs_of_another_kind_stay_as_they_are(source: str) -> None:
    assert without_tensors(source) == source


def test_a_value_may_have_several_names_and_layouts() -> None:
    inside = f"auto body_buf1 = {VIEW.format('0L')}; body_buf0.reset();  // reuse"
    found = without_tensors(program(inside, "body_buf1"))
    assert "auto body_buf1 = l2path_loop::view(body_buf0, 2, int_array_1, int_array_2, 0L);" in found
    assert "buf2_now = body_buf1;" in found


def test_statements_have_their_parts() -> None:
    (found,) = read(["  auto a = std::move(b);  // reuse"])
    assert (found.kind, found.parts) == ("renamed", {"name": "a", "of": "b"})
    assert arrays(["x();", "static constexpr int64_t int_array_3[] = {8L, };"]) == {"int_array_3": [8]}
    with pytest.raises(UnknownStatement, match="x"):
        list(read(["x();"]))


values = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 500)), max_size=20)


@given(values)
def test_no_two_values_are_in_one_place_at_the_same_time(made: list[tuple[int, int, int]]) -> None:
    found = [Value(min(a, b), max(a, b), n, "float32") for a, b, n in made]
    size = _lay_out(found)
    for i, one in enumerate(found):
        assert one.offset % ALIGNED == 0
        assert one.offset + one.nbytes <= size
        for other in found[:i]:
            apart_in_time = one.last < other.first or other.last < one.first
            apart = one.offset + one.nbytes <= other.offset or other.offset + other.nbytes <= one.offset
            assert apart_in_time or apart or not min(one.nbytes, other.nbytes)


def test_places_are_used_again() -> None:
    found = [Value(i, i + 1, 1000, "float32") for i in range(10)]
    assert _lay_out(found) == 2 * 1024


def test_another_pass_makes_other_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = loops.digest()
    other = tmp_path / "loops.hpp"
    other.write_text(loops.HEADER.read_text() + "\n")
    monkeypatch.setattr(loops, "HEADER", other)
    assert loops.digest() != before
