"""Let atheris look for inputs that reach new lines of a reader (pip install atheris; Linux).

    python -m tests.fuzz.guided "pth, zip" -max_total_time=60  # the rest goes to libFuzzer, which reports

Damage is that of the mutators, so checksums and lengths stay right; what leads to new lines is damaged further.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["xpcnn.data", "xpcnn.formats", "xpcnn.training.checkpoint"]):
    from tests.fuzz.harness import LARGEST, READERS, check, scratch


def main() -> None:
    reader = READERS[sys.argv[1]]
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        folder = Path(name)
        reader.prepare(folder)
        corpus = folder / "corpus"
        corpus.mkdir()
        for i, content in enumerate(reader.seeds()):
            (corpus / str(i)).write_bytes(content)

        def damage(data: bytes, most: int, seed: int) -> bytes:
            return reader.damaged(Random(seed), bytes(data))[:most]

        options = [sys.argv[0], *sys.argv[2:], f"-max_len={LARGEST}", "-rss_limit_mb=0", "-timeout=30"]
        options += [f"-artifact_prefix={tempfile.gettempdir()}/", str(corpus)]
        atheris.Setup(options, lambda data: check(reader, data, folder) and None, custom_mutator=damage)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
