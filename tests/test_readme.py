"""The Python in the README runs, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("epochs=3", "epochs=1"), names)
    assert (tmp_path / "digits.safetensors").exists()
    assert names["history"].epochs == 1
    assert float(names["loss"]) == pytest.approx(0, abs=2)
    assert "accuracy" in capsys.readouterr().out
