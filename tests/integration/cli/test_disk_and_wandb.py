"""Runs on a disk that is full, and without a connection to Weights & Biases."""

import re
import resource
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.helpers.command import GAN_RUN, MLP_RUN, fails, read_rows, run_program
from zoo.cli.main import main

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def test_a_full_disk_ends_the_run_with_one_line(capsys):
    """A limit on the size of files stands for the disk. What the run had written stays."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        args = ["--trainer.callbacks=BestAndLastCheckpoint", "--trainer.callbacks.monitor=val/fd"]
        line = fails(capsys, *GAN_RUN, *args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(r"runs/gan_digits/version_0/\S+ cannot be (read or )?written: File too large", line)
    assert Path("runs/gan_digits/version_0/config.yaml").is_file()


KEY = "0123456789abcdef" * 3
SECRETS = {"WANDB_API_KEY": KEY, "HF_TOKEN": "hf_" + "q7" * 17, "AWS_SECRET_ACCESS_KEY": "w9" * 20}


def test_without_a_connection_training_goes_on_and_no_secret_is_written(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.delenv("WANDB_MODE")
    for name, value in {**SECRETS, "WANDB_BASE_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match="Weights & Biases is not available") as said:
        main(MLP_RUN)
    (message,) = [str(warning.message) for warning in said if "Weights & Biases" in str(warning.message)]
    assert "no connection to 127.0.0.1" in message and "wandb sync runs/mlpclassifier/version_0" in message
    assert any(row["val/loss"] for row in read_rows(Path("runs/mlpclassifier/version_0"))), "metrics are on the disk"
    assert list(tmp_path.rglob("offline-run-*/*.wandb")), "and the run of Weights & Biases"
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS.values()), path
    output = "".join([*capfd.readouterr(), caplog.text, *(str(warning.message) for warning in said)])
    assert not any(secret in output for secret in SECRETS.values())


@pytest.mark.slow
def test_with_a_wrong_key_training_goes_on(tmp_path):
    class Refuse(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "invalid API key"}]}')

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = run_program(*MLP_RUN, cwd=tmp_path, WANDB_BASE_URL=url, WANDB_API_KEY=KEY, timeout=100)
        server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    output = done.stdout + done.stderr
    assert output.count("UserWarning: Weights & Biases is not available") == 1, done.stderr[-2000:]
    assert any(row["val/loss"] for row in read_rows(tmp_path / "runs" / "mlpclassifier" / "version_0"))
    assert KEY not in output
