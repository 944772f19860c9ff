"""install(): what it refuses, and the settings it reads."""

import pytest
from processes import FOLDER, output, run


def test_after_cupy_it_is_too_late():
    done = run("import cupy\nimport cudasim\ncudasim.install()", preamble="")
    assert done.returncode != 0
    assert "cudasim.install() must run before cupy is imported" in done.stderr


def test_before_install_there_is_nothing_to_count():
    done = run("import cudasim\nprint(cudasim.is_active())\ncudasim.counters()", preamble="")
    assert done.stdout == "False\n"
    assert "cudasim is not installed in this process: call cudasim.install()" in done.stderr


@pytest.mark.parametrize("name", ["CUDASIM_MEM", "CUDASIM_CC", "CUDASIM_DEVICES", "CUDASIM_MAX_INS", "CUDASIM_POISON"])
def test_settings_must_be_numbers(name):
    done = run("", **{name: "4GiB"})
    assert done.returncode != 0
    assert f"{name} must be a whole number (bytes are written out), and is '4GiB'" in done.stderr


def test_a_library_that_is_not_built_is_named():
    program = "from pathlib import Path\nfrom cudasim import library\nlibrary.FOLDER = Path('/nowhere')\nlibrary.load()"
    done = run(program, preamble="")
    assert "/nowhere/libcudasim.so is missing; build it: " in done.stderr


def test_the_device_that_is_shown():
    program = """
p = cp.cuda.runtime.getDeviceProperties(0)
print(p["name"].decode(), cp.cuda.Device().compute_capability, cp.cuda.runtime.getDeviceCount(), p["totalGlobalMem"])
"""
    assert output(program) == f"cudasim (CPU) 75 1 {2**32}\n"
    assert output(program, CUDASIM_CC="90", CUDASIM_DEVICES="2", CUDASIM_MEM="0x1000") == "cudasim (CPU) 90 2 4096\n"


def test_no_device():
    done = run("cp.zeros(3)", CUDASIM_DEVICES="0")
    assert "cudaErrorNoDevice: no CUDA-capable device is detected" in done.stderr


def test_functions_without_a_replacement_say_so_once():
    program = """
for _ in range(2):
    try:
        cp.cuda.runtime.createTextureObject(
            cp.cuda.texture.ResourceDescriptor(cp.cuda.runtime.cudaResourceTypeLinear, arr=cp.zeros(8, "f4"),
                chDesc=cp.cuda.texture.ChannelFormatDescriptor(32, 0, 0, 0, 2), sizeInBytes=32).ptr,
            cp.cuda.texture.TextureDescriptor().ptr)
    except cp.cuda.runtime.CUDARuntimeError as e:
        print(e)
"""
    done = run(program)
    assert done.stdout == "cudaErrorNotSupported: operation not supported\n" * 2
    assert done.stderr == "cudasim: cudaCreateTextureObject is not supported\n"
    assert run(program, CUDASIM_QUIET="1").stderr == ""


def test_compiled_device_code_is_refused():
    program = """
try:
    cp.cuda.function.Module().load(b"\\x7fELF" + bytes(100))
except cp.cuda.driver.CUDADriverError as e:
    print(e)
"""
    done = run(program)
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in done.stdout
    assert done.stderr == "cudasim: only PTX can be loaded, not compiled device code\n"


def test_text_that_is_no_ptx_is_refused():
    program = """
try:
    cp.cuda.function.Module().load(b".version 8.0\\nnonsense;\\0")
except cp.cuda.driver.CUDADriverError as e:
    print(e)
"""
    done = run(program)
    assert "CUDA_ERROR_INVALID_PTX" in done.stdout
    assert done.stderr == "cudasim: PTX rejected: unexpected text in PTX: nonsense\n"


def test_with_cuda_sim_switches_it_on_at_the_first_import():
    program = "import sys; assert 'cudasim' not in sys.modules; import cupy; print(sys.modules['cudasim'].is_active())"
    done = run(
        f"import subprocess; subprocess.run([{str(FOLDER / 'with-cuda-sim')!r}, sys.executable, '-c', {program!r}])",
        preamble="import sys\n",
    )
    assert done.stdout == "True\n", done.stderr
