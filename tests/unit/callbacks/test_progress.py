"""The summary of a model."""

from __future__ import annotations

import pytest

from zoo.callbacks.progress import ShortModelSummary


@pytest.mark.parametrize("flops", [0, 2_000])
def test_the_summary_names_flops_only_where_they_were_counted(flops, capsys):
    columns = {" ": "0", "Name": "network", "Type": "MLP", "Params": "1.2 K", "Mode": "train", "FLOPs": "0"}
    rows = [(name, [value]) for name, value in columns.items()]
    ShortModelSummary.summarize(rows, 1200, 1200, 0.01, {"train": 1, "eval": 0}, total_flops=flops)
    output = capsys.readouterr().out
    assert "Trainable params: 1.2 K" in output and "network" in output
    assert ("Total FLOPs: 2.0 K" in output) == (flops > 0) == ("Total FLOPs" in output)
