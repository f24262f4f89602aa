"""The benchmark of large imports runs on a small log."""

from __future__ import annotations

import json

import pytest

from benchmarks import import_scale


@pytest.mark.slow
def test_small(tmp_path, capsys):
    pytest.importorskip("pyarrow", reason="importing tables needs pyarrow (extra data)")
    out = tmp_path / "result.json"
    other = {"rows": 3000, "step": "read"}
    out.write_text(json.dumps({"steps": [other, {"rows": 2000, "step": "read"}]}))
    folder = tmp_path / "files"
    folder.mkdir()
    command = ["--rows", "2000", "--folder", str(folder), "--out", str(out), "--only"]
    import_scale.main([*command, "write", "import, Parquet", "import, CSV"])
    import_scale.main([*command, *list(import_scale.STEPS)[2:]])
    assert "2,000 rows  import" in capsys.readouterr().out
    *steps, last = json.loads(out.read_text())["steps"]
    assert last == other
    assert [entry["step"] for entry in steps] == list(import_scale.STEPS)
    assert all(0 < entry["peak_mb"] < 2000 and entry["seconds"] > 0 for entry in steps)
