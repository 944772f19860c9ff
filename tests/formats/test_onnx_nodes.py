"""Every node case of the onnx package whose operators we have passes, or is in a list that says why not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import to_numpy
from onnx import numpy_helper

from xpcnn.formats.onnx.load import read
from xpcnn.formats.onnx.ops import OPS

# Counts for onnx 1.23; a new release may have more cases, never fewer that pass.
COVERED, PASSED = 1104, 908

# reason -> (what the error says, which cases it is)
REFUSED: dict[str, tuple[str, list[str]]] = {
    "element types that NumPy lacks": (
        r"uses the element type (FLOAT8\w+|FLOAT4E2M1|BFLOAT16|U?INT[24]|STRING), which is not known here",
        [
            *(
                f"test_cast*_{kind}*"
                for kind in ("FLOAT8E*", "BFLOAT16", "FLOAT4E2M1", "INT4", "UINT4", "INT2", "UINT2")
            ),
            "test_cast_e8m0_*",
            "test_attention_*_bf16_expanded",
            "test_*_bfloat16*",
            "test_equal_string*",
        ],
    ),
    "only tensors": ("is no tensor", ["test_identity_sequence", "test_identity_opt"]),
    "networks of images have at most two axes besides N and C": (
        r"images \(N, C, H, W\) or signals \(N, C, L\) are expected",
        ["test_averagepool_3d_*", "test_maxpool_3d_*", "test_lppool_3d_default"],
    ),
    "average pooling has no dilations": (
        r"AveragePool with dilations is not computed",
        ["test_averagepool_2d_dilations"],
    ),
    "max pooling is of floats": ("cannot convert float infinity to integer", ["test_maxpool_2d_uint8"]),
    "no indices": ("returns indices, which are not computed here", ["test_maxpool_with_argmax_*"]),
    "the largest of nothing": (
        "zero-size array to reduction operation",
        ["test_reduce_max_empty_set*", "test_reduce_min_empty_set", "test_reduce_log_sum_exp_empty_set"],
    ),
    "whether dropout is in training is said by the caller": ("draws random numbers", ["test_training_dropout*"]),
    "written for an old opset": ("is written for opset 1; 6 and newer are read", ["test_not_[234]d"]),
    "float16 is rounded in another order": (
        r"Mismatched elements: \d / ",
        ["test_swiglu_float16_expanded", "test_attention_4d_gqa_causal_nonpad_decode_fp16_expanded"],
    ),
}


@lru_cache(maxsize=1)
def covered_cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    known = OPS.keys() | {"Constant"}
    return [
        case
        for case in collect_testcases(None)
        if all(node.op_type in known and node.domain in ("", "ai.onnx") for node in case.model.graph.node)
    ]


def array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def settled(model: Any) -> set[str]:
    """The inputs that a network has as constants: sizes, axes, indices, and what they follow from."""
    found: set[str] = set()
    for node in reversed(model.graph.node):
        row = OPS.get(node.op_type)
        if row is not None:
            found.update(node.input[i] for i in row.host if i < len(node.input))
            if found.intersection(node.output) and not row.shape_only:
                found.update(node.input)
    return found - {""}


def run_case(case: Any, xp: Any) -> None:
    for inputs, outputs in case.data_sets:
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        constants, values = settled(model), {}
        for info, value in zip(case.model.graph.input, inputs, strict=True):
            if info.name in constants:
                model.graph.initializer.append(numpy_helper.from_array(array(value), info.name))
            else:
                values[info.name] = value
        graph = read(onnx, model)
        results, _ = graph.run({name: xp.asarray(array(value)) for name, value in values.items()}, None)
        assert len(results) == len(outputs)
        for result, value in zip(results, outputs, strict=True):
            expected = array(value)
            assert isinstance(result, (xp.ndarray, np.ndarray))  # what follows from shapes stays on the host
            assert result.dtype == expected.dtype
            assert result.shape == expected.shape
            np.testing.assert_allclose(to_numpy(result), expected, rtol=case.rtol, atol=case.atol)


def failures(cases: Iterable[Any], xp: Any) -> dict[str, str]:
    found = {}
    for case in cases:
        try:
            with np.errstate(all="ignore"):
                run_case(case, xp)
        except Exception as error:  # whatever it is, it must be in the list
            found[case.name] = re.sub(r"\s+", " ", str(error))
    return found


def reasons_of(name: str) -> list[str]:
    return [reason for reason, (_, patterns) in REFUSED.items() if any(fnmatchcase(name, p) for p in patterns)]


@pytest.mark.filterwarnings("ignore")  # some cases divide by zero on purpose
def test_node_cases(capsys):
    cases = covered_cases()
    failed = failures(cases, np)
    for name, message in failed.items():
        reasons = reasons_of(name)
        assert reasons, f"{name} fails: {message}"
        assert re.search(REFUSED[reasons[0]][0], message), f"{name} fails otherwise than expected: {message}"
    wrongly_listed = [case.name for case in cases if reasons_of(case.name) and case.name not in failed]
    assert not wrongly_listed, f"listed as refused, but they pass: {wrongly_listed}"

    operators = Counter(
        op for case in cases if case.name not in failed for op in {n.op_type for n in case.model.graph.node}
    )
    with capsys.disabled():
        print(
            f"\nONNX node cases: {len(cases)} have only operators known here, {len(cases) - len(failed)} pass,", end=" "
        )
        print(f"{len(failed)} are refused:", "; ".join(f"{count} {r}" for r, count in refusals(failed).items()))
        print(f"{len(OPS)} operators:", ", ".join(f"{op} {operators[op]}" for op in sorted(OPS)))
    assert len(cases) >= COVERED
    assert len(cases) - len(failed) >= PASSED
    assert not [op for op in OPS if not operators[op]], "operators without a case that passes"


def refusals(failed: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons_of(name)[0] for name in failed))


# CuPy's remainder of infinity is NaN, as C's; NumPy's is Python's.
OTHERWISE_ON_CUPY = ["test_mod_float_edge_cases_fmod_0_float*"]


@pytest.mark.cupy
@pytest.mark.filterwarnings("ignore")
def test_node_cases_on_cupy():
    import cupy

    cases = [case for case in covered_cases() if len(case.model.graph.node) == 1 and not reasons_of(case.name)]
    cases = [case for case in cases if not any(fnmatchcase(case.name, p) for p in OTHERWISE_ON_CUPY)]
    failed = failures(cases, cupy)
    assert not failed
    assert len(cases) >= 550
