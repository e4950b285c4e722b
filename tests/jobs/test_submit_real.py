"""The verbs against a real head: submit, follow, status, stop, retry, and what is not repeated."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from heads import Head, running_head
from own_home import OwnHome, id_in
from tiny import tiny_spec

from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

CANARY = "canary-" + secrets.token_hex(8)

# Its backward pass fails in one of two workers.
NETWORK = """
import hashlib
import os

import torch


def build(num_classes: int) -> torch.nn.Module:
    stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    net = torch.nn.Sequential()
    net.add_module("stem", stem)
    net.add_module("fc", torch.nn.Linear(4, num_classes))
    net.fc.register_full_backward_hook(fail)
    return net


def fail(*_):
    if os.environ.get("RANK") == "1":
        raise ValueError("a bug of mine, " + hashlib.sha256(os.environ["MY_SECRET"].encode()).hexdigest())
"""


@dataclass(frozen=True)
class Cluster(OwnHome):
    """A home that knows a head of our own as `real`."""

    head: Head

    @classmethod
    def at(cls, folder: Path, head: Head) -> Cluster:
        home = cls(folder, head)
        secret = f"secrets: {{MY_SECRET: 'file:{folder}/secret'}}\n"
        home.cluster_file("real", f"kind: address\nurl: {head.url}\ntoken: file:{folder}/token\n{secret}")
        for name, text in (("token", head.token), ("secret", CANARY)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o600)
        return home


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_head() as head:
        yield Cluster.at(tmp_path_factory.mktemp("home"), head)


@pytest.mark.slow
def test_submit_follow_status_stop_retry_and_a_failure(cluster: Cluster) -> None:
    home = cluster.folder
    digits = home / "digits"
    (home / "tiny.yaml").write_text(dump_yaml(tiny_spec(digits, {"train.epochs": 2})))

    # Right after the head's start, followed to the end; the data travels with it.
    upload = ["--upload", str(digits / "train.parquet"), "--upload", str(digits / "test.parquet")]
    out, err = cluster.run("submit", "tiny.yaml", "--cluster", "real", *upload)
    own_id = id_in(err)
    assert f"{own_id} submitted to real ({cluster.head.url})" in err
    assert f"tltrain stop {own_id}" in err
    assert err.rstrip().endswith(f"{own_id} SUCCEEDED")
    assert "Test accuracy" in out
    run = RunFolder.at(str(digits / "runs"), "tiny").state()
    assert (run["state"], run["job"]) == ("finished", f"{own_id}-1")
    assert cluster.run("logs", own_id)[0] == out
    assert cluster.run("logs", "-f", own_id)[0] == out

    # A longer one: detached, stopped, and gone on with. Stopping is no failure.
    (home / "long.yaml").write_text(dump_yaml(tiny_spec(digits, {"train.epochs": 4000}, name="long")))
    _, err = cluster.run("submit", "long.yaml", "--cluster", "real", "-d")
    own_id = id_in(err)
    cluster.until(lambda: cluster.job(own_id)["state"] == "RUNNING", "it does not run")
    listed = json.loads(cluster.run("jobs", "--json")[0])
    assert [job["id"] for job in listed] == [own_id]
    cluster.run("stop", "long-")
    assert cluster.job(own_id)["state"] == "STOPPED"
    follower = cluster.start("retry", own_id)
    cluster.until(lambda: cluster.job(own_id)["state"] == "RUNNING", "it does not go on")
    follower.send_signal(2)  # Ctrl-C
    _, err = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert f"{own_id} goes on without this terminal. Stop it: tltrain stop {own_id}" in err
    job = cluster.job(own_id)
    assert (job["state"], len(job["attempts"])) == ("RUNNING", 2)
    cluster.run("stop", own_id)

    # A bug of the user's: its line comes first, and it is not repeated.
    (home / "mynet.py").write_text(NETWORK)
    changes = {"model.name": None, "model.factory": "mynet:build", "model.freeze_depth": 0, "allow_code": True}
    bad = tiny_spec(digits, {**changes, "resources": {"num_workers": 2}}, name="bad")
    (home / "bad.yaml").write_text(dump_yaml(bad))
    out, err = cluster.run("submit", "bad.yaml", "--cluster", "real", "--upload", "mynet.py", code=1)
    # The worker had the secret that the cluster file refers to.
    digest = hashlib.sha256(CANARY.encode()).hexdigest()
    assert f"Rank 1 failed first: ValueError: a bug of mine, {digest}\n  mynet.py:" in err
    assert "Not repeated: user code" in err
    own_id = id_in(err)
    assert (cluster.job(own_id)["cause"], len(cluster.job(own_id)["attempts"])) == ("user code", 1)

    said = out + err + cluster.run("logs", own_id)[0] + cluster.head.get("/api/jobs/")
    cluster.run("rm", own_id)
    assert own_id not in cluster.run("jobs", "-a")[0]

    # Neither the secret nor the token stands in any record, log or run folder, here or at the head.
    said += cluster.run("jobs", "-a", "--json")[0]
    for secret, kept in ((CANARY, "secret"), (cluster.head.token, "token")):
        assert secret not in said
        assert files_with(secret, cluster.head.folder) == []
        assert files_with(secret, home) == [home / kept]


def files_with(text: str, folder: Path) -> list[Path]:
    """The files below a folder in which a text stands."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [path for path in files if text.encode() in path.read_bytes()]
