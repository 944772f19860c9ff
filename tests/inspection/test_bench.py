from __future__ import annotations

import pytest

from xpcnn import backend
from xpcnn.errors import ArgumentError
from xpcnn.inspection import WORKLOADS, bench
from xpcnn.inspection.bench import densenet40, resnet18, runner, sgemm_peak, vgg16_bn


def test_the_deep_networks_are_those_of_their_papers():
    sizes = {}
    for make in (vgg16_bn, resnet18, densenet40):
        net = make()
        assert net.build((3, 32, 32)) == (10,)
        sizes[make.__name__] = sum(p.data.size for p in net.parameters().values())
    assert sizes == {"vgg16_bn": 14_724_042, "resnet18": 11_173_962, "densenet40": 176_122}


def test_flops_count_no_dx_for_the_first_layer():
    training, inference = WORKLOADS["W4 keras b16"], WORKLOADS["W6 keras b64"]
    first, second = 26 * 26 * 32 * 9, 24 * 24 * 64 * 32 * 9
    dense = 9216 * 128 + 1280
    assert training.flops() == 2 * 16 * (2 * first + 3 * (second + dense))
    assert inference.flops() == 2 * 64 * (first + second + dense)


@pytest.mark.parametrize("name", ["W2 lenet b5", "W6 keras b1"])
def test_a_workload_runs_on_both_backends(name, xp):
    step = runner(WORKLOADS[name], "cpu" if xp.__name__ == "numpy" else "cuda:0")
    losses = [step() for _ in range(2)]
    assert losses == [0.0, 0.0] if "W6" in name else 0 < losses[0] < 10


def test_bench_measures_what_it_is_asked_for():
    report = bench(["KERAS B1"], seconds=0.0)
    assert [row.workload for row in report.rows] == ["W4 keras b16", "W6 keras b1"]
    for row in report.rows:
        assert row.steps >= 3
        assert 0 < row.best <= row.median
        assert row.images_per_second == pytest.approx((16 if "b16" in row.workload else 1) / row.median)
        assert row.utilisation == pytest.approx(WORKLOADS[row.workload].flops() / row.median / report.sgemm)
    text = str(report)
    assert f"{backend.threads()} threads" in text
    assert "W6 keras b1" in text
    assert "sgemm peak" in text


def test_unknown_workload():
    with pytest.raises(ArgumentError, match=r"no workload is called W9; there are: W1 mri b32, "):
        bench(["W9"])


def test_sgemm_peak_is_that_of_this_machine(xp):
    device = "cpu" if xp.__name__ == "numpy" else "cuda:0"
    assert sgemm_peak(device, size=64, rounds=1) > 0
