"""Every stage on a thousandth of the data, where the data is at hand (TCBERT_DATA or ../shared/data) and Maven is."""

import shutil

import pytest

from train.__main__ import arguments, main


def test_every_stage_runs(capsys):
    if not arguments(["smoke"]).data.is_dir():
        pytest.skip("no training data beside the checkout; name it in TCBERT_DATA")
    if shutil.which("mvn") is None:
        pytest.skip("Maven is missing, which fetches the sentence encoder")
    assert main(["smoke"]) == 0
    assert "every stage ran" in capsys.readouterr().out
