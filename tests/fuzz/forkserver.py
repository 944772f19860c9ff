"""Forks a process that has imported what it needs, where xpcnn starts an interpreter to read a file (Linux).

Readers of Keras files, and of ONNX files with a Slice, try what could crash a library in an interpreter of its own.
Starting and ending one takes 0.3 s, nearly all of it for imports: too long for 100,000 damaged files. So a server
imports once, and forks for each file a child that goes on as a fresh interpreter would: it runs the program and has the
arguments and the input that xpcnn gave to `subprocess.run`, limits its memory as ever (to so much more than it has),
and runs what was registered to be run at the end. Its exit code or signal comes back, and it is killed when xpcnn's
time limit is over.

What differs: BLAS has one thread, the streams are files in memory instead of pipes, Python's modules are not taken down
at the end, and what is drawn by chance at the start (where libraries lie in memory) is drawn once for the server.

    with forking("h5py"):
        read_weights("damaged.h5")
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

POSSIBLE = sys.platform == "linux"
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
LONGEST = 1 << 16  # bytes of a message: a command and its time limit


class ServerFailed(BaseException):
    """The server cannot do its work. No Exception, since readers take many of those for what a broken file causes."""


@contextmanager
def forking(module: str) -> Iterator[None]:
    """Let `subprocess.run` fork a process that has imported `module`, where it would start `python -I`."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        server = subprocess.Popen(
            [sys.executable, "-I", __file__, json.dumps(sys.path), module, str(there.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
            env=os.environ | ONE_THREAD,
        )
    start = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if command[:2] != [sys.executable, "-I"]:  # h5py asks another program for the kind of processor
            return start(command, **options)
        try:
            code, stdout, stderr = ask(here, command[2:], options["input"], options.get("timeout"))
        except Exception as error:
            raise ServerFailed(f"the fork server has failed ({type(error).__name__}: {error})") from error
        if code is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, code, stdout, stderr)

    with server, here, mock.patch.object(subprocess, "run", run):  # the server ends when `here` is closed
        yield


def ask(
    server: socket.socket, arguments: list[str], content: bytes, timeout: float | None
) -> tuple[int | None, bytes, bytes]:
    """Return exit code (None if the time was over), stdout and stderr of `python -I ARGUMENTS`."""
    streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    try:
        os.pwrite(streams[0], content, 0)
        socket.send_fds(server, [json.dumps([arguments, timeout]).encode()], streams)
        code = json.loads(server.recv(LONGEST))
        out, err = (os.pread(stream, os.fstat(stream).st_size, 0) for stream in streams[1:])
    finally:
        for stream in streams:
            os.close(stream)
    return code, out, err


def serve(client: socket.socket) -> None:
    """Fork for each message a child that does what `python -I` would do, and answer with its exit code."""
    while True:
        message, streams, _, _ = socket.recv_fds(client, LONGEST, 3)
        if not message:
            return
        (program, *arguments), timeout = json.loads(message)
        code = compiled(arguments.pop(0) if program == "-c" else Path(program).read_text(), program)
        pid = os.fork()
        if pid == 0:
            client.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            sys.argv = [program, *arguments]
            interpret(code)
        for stream in streams:
            os.close(stream)
        ended = os.pidfd_open(pid)
        ready, _, _ = select.select([ended, client], [], [], timeout)
        os.close(ended)
        if ended not in ready:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if client in ready:  # nobody waits for the answer any more
            return
        client.send(json.dumps(os.waitstatus_to_exitcode(status) if ready else None).encode())


@lru_cache(maxsize=4)
def compiled(source: str, name: str) -> Any:
    """Return a program, compiled without the __future__ imports of this one."""
    return compile(source, name, "exec", dont_inherit=True)


def interpret(code: Any) -> None:
    """Run a program and end this process as the interpreter would, except that modules are not taken down."""
    status = 0
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    gc.collect()
    ctypes.CDLL(None).exit(status)  # runs what the C libraries have registered, such as HDF5's end


def main() -> None:
    """Import, then serve."""
    paths, module, number = sys.argv[1:]
    sys.path[:] = json.loads(paths)
    importlib.import_module(module)
    if len(os.listdir("/proc/self/task")) > 1:
        raise SystemExit("the fork server has threads, which its children would lack")
    gc.collect()
    gc.freeze()  # what is here now is no garbage of the children
    serve(socket.socket(fileno=int(number)))


if __name__ == "__main__":
    main()
