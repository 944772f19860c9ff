"""Ways to predict on the CPU, side by side: ours, torch's and ONNX Runtime's, in turn in one run.

    pip install torch==2.13.0 onnx onnxruntime
    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/inference.py [NAME ...] [--rounds 5] [--json FILE]

Every way has a process of its own and as many threads as the others. The xpcnn network is exported to ONNX, and
ONNX Runtime runs that file; its outputs are compared with ours before anything is timed. torch runs the same
architecture: eager, with batch norm fused by torch.fx, and compiled by torch.compile (which needs a C++ compiler).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from compare import FAST, about, answer, images, peak_memory, workloads


def net_of(workload):
    """Return the network of a workload, the same in every process, with the statistics of a trained batch norm."""
    from xpcnn.layers import BatchNorm2d

    net, rng = workload.network(), np.random.default_rng(1)
    net.build(workload.shape)
    for _, layer in net.leaves():
        if isinstance(layer, BatchNorm2d):
            layer.running_mean.data[...] = rng.normal(0.0, 0.1, layer.running_mean.data.shape)
            layer.running_var.data[...] = rng.uniform(0.5, 1.5, layer.running_var.data.shape)
    return net


# --- ways: each returns a function that predicts once and returns the outputs -----------------------------------


def layer_by_layer(workload, threads, path):
    """net(x)."""
    net, x = net_of(workload), images(workload)
    return lambda: net(x)


def for_inference(workload, threads, path):
    """net.for_inference()(x)."""
    net, x = net_of(workload).for_inference(), images(workload)
    return lambda: net(x)


def predict(workload, threads, path):
    """classifier.for_inference().predict_proba(x): with checks, normalisation and softmax."""
    from xpcnn import Classifier

    classifier, x = Classifier(net_of(workload), device="cpu", normalize=(0.0, 1.0)), images(workload)
    classifier.build(workload.shape)
    fast = classifier.for_inference()
    return lambda: fast.predict_proba(x)


def torch_net(workload, threads):
    """Return the network in torch, and its images."""
    import torch
    import torch_side

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return getattr(torch_side, workload.network.__name__)().eval(), torch.from_numpy(images(workload))


def torch_call(net, x):
    """Return a function that predicts in inference mode."""
    import torch

    def call():
        with torch.inference_mode():
            net(x)

    return call


def torch_eager(workload, threads, path):
    """net.eval() in inference_mode()."""
    return torch_call(*torch_net(workload, threads))


def torch_fused(workload, threads, path):
    """The same after torch.fx.experimental.optimization.fuse: batch norm folded."""
    from torch.fx.experimental.optimization import fuse

    net, x = torch_net(workload, threads)
    return torch_call(fuse(net), x)


def torch_compiled(workload, threads, path):
    """The same after torch.compile."""
    import torch

    net, x = torch_net(workload, threads)
    return torch_call(torch.compile(net), x)


def onnx_runtime(workload, threads, path):
    """ONNX Runtime with the exported file of the network as it was trained; it folds batch norm itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session, x = onnxruntime.InferenceSession(path, options), images(workload)
    return lambda: session.run(None, {"input": x})[0]


WAYS = {
    "xpcnn net(x)": layer_by_layer,
    "xpcnn for_inference": for_inference,
    "xpcnn predict_proba": predict,
    "torch eval": torch_eager,
    "torch, batch norm fused": torch_fused,
    "torch.compile": torch_compiled,
    "ONNX Runtime": onnx_runtime,
}


def serve(way, name, threads, path):
    """Measure one way in this process."""
    import xpcnn

    xpcnn.set_threads(threads)
    call = WAYS[way](workloads()[name], threads, path)
    for _ in range(3):
        call()
    answer(call, memory=peak_memory())


def check(workload, path):
    """Raise unless ONNX Runtime and our network agree."""
    expected = layer_by_layer(workload, 1, path)()
    for way in (for_inference, onnx_runtime):
        np.testing.assert_allclose(way(workload, 1, path)(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def compare(name, options, path):
    """Return median milliseconds by way, and how often faster than `torch eval` each is (a median over rounds)."""
    from xpcnn.formats import onnx

    onnx.save(net_of(workloads()[name]), path)
    check(workloads()[name], path)
    processes, memory = {}, {}
    for way in WAYS:
        command = [sys.executable, __file__, "--serve", way, name, str(options.threads), path]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = process.stdout.readline()
        if line:
            processes[way], memory[way] = process, json.loads(line)["memory"]
        else:
            process.wait()
            print(f"  {way} does not run here", file=sys.stderr)
    rounds = []
    for number in range(options.rounds):
        found = {}
        for way in list(processes) if number % 2 == 0 else list(processes)[::-1]:
            time.sleep(0.15)  # an idle BLAS or OpenMP thread spins for a tenth of a second
            print(options.seconds, file=processes[way].stdin, flush=True)
            found[way] = statistics.median(json.loads(processes[way].stdout.readline())["times"])
        rounds.append(found)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return {
        way: {
            "ms": statistics.median(found[way] for found in rounds) * 1e3,
            "best_ms": min(found[way] for found in rounds) * 1e3,
            "ratio": statistics.median(found["torch eval"] / found[way] for found in rounds),
            "memory_mb": memory[way],
        }
        for way in processes
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of workload names; all of inference by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each way in each round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the results there; results in it for other names are kept")
    options = parser.parse_args()
    import onnxruntime

    results = {}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())["results"]
    with tempfile.TemporaryDirectory() as folder:
        for name, workload in workloads().items():
            chosen = not options.names or any(part.lower() in name.lower() for part in options.names)
            if workload.optimizer or name.endswith(FAST) or not chosen:
                continue
            results[name] = compare(name, options, str(Path(folder, "net.onnx")))
            print(f"{name:24}{'ms':>10}{'best':>10}{'against torch eval':>20}{'MB':>8}")
            for way, r in results[name].items():
                print(
                    f"  {way:22}{r['ms']:10.3f}{r['best_ms']:10.3f}{r['ratio']:20.2f}{r['memory_mb']:8.0f}", flush=True
                )
    if options.json:
        head = about(options.threads)
        head["versions"]["onnxruntime"] = onnxruntime.__version__
        options.json.write_text(json.dumps({**head, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    else:
        main()
