"""Names that are paths: of runs, jobs, clusters, members of archives, links and uploads. None leads elsewhere."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tltrain.data.sources import open_source
from tltrain.errors import SpecError, StorageError, TltrainError
from tltrain.inference.images import open_images
from tltrain.jobs.clusters import load_cluster
from tltrain.jobs.ledger import Ledger
from tltrain.jobs.upload import pack, user_entries
from tltrain.run_folder import RunFolder
from tltrain.spec.load import parse_spec
from tltrain.spec.schema import DataSpec

NAMES = [
    "..",
    "../x",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    ".",
    "",
    "-x",
    "a\0b",
    "A",
    "a\n",
    "ü",
    "a" * 64,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_done(name: str, tmp_path: Path) -> None:
    text = "model: {name: resnet50}\ndata: {train: a}\n"
    with pytest.raises(SpecError):
        parse_spec(text + f"name: {name!r}\n", where="x", base=tmp_path)
    with pytest.raises(SpecError):
        parse_spec(text + "name: x\n", where="x", base=tmp_path, sets=[f"name={json.dumps(name)}"])
    if "/" in name or "\\" in name or name in ("", ".", "..", "a\0b"):
        with pytest.raises(StorageError):
            RunFolder.at(str(tmp_path), name)


@pytest.mark.parametrize("name", NAMES)
def test_an_id_of_a_job_is_looked_up_and_never_opened(name: str, tmp_path: Path) -> None:
    with Ledger(tmp_path / "data") as ledger, pytest.raises(SpecError, match="there is no job"):
        ledger.find(name)


@pytest.mark.parametrize("name", ["..", "../x", "../x.yaml", "x/../../y", "-x.yaml", "X.yaml", ".yaml", "a\nb.yaml"])
def test_a_name_of_a_cluster_leads_to_a_cluster_file_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cluster").mkdir()
    for folder in (tmp_path, tmp_path / "cluster"):
        for file in ("X.yaml", "-x.yaml", ".yaml", "a\nb.yaml"):
            (folder / file).write_text("kind: local\n")
    monkeypatch.chdir(tmp_path / "cluster")
    with pytest.raises(TltrainError):
        load_cluster(name)


def image(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """An image outside of the data, which nobody may be made to read."""
    path = tmp_path / "outside" / "secret.png"
    path.parent.mkdir()
    path.write_bytes(image(255))
    return path


def everything(source: Path | str) -> list[bytes | Image.Image]:
    opened = open_source(str(source), DataSpec(train=str(source), val=None), split="train")
    return [opened.read(index) for index in range(len(opened))]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_members_of_an_archive_stay_in_it(secret: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, content in (("a.png", image()), ("a.cls", b"0"), ("b.png", image()), ("b.cls", b"1")):
            info = member(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name in ("../c.png", "x/../../c.png", "/tmp/c.png", "..\\c.png", "C:\\c.png"):
            archive.addfile(member(name))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            for name in ("d.png", "e.cls"):
                archive.addfile(member(name, kind, str(secret)))
                archive.addfile(member(name, kind, "../outside/secret.png"))
        archive.addfile(member("f.png", tarfile.CHRTYPE))
        archive.addfile(member("g.png", tarfile.FIFOTYPE))

    assert everything(tmp_path / "x.tar") == [image(), image()]
    assert set(tmp_path.rglob("*")) == before | {tmp_path / "x.tar"}


@pytest.mark.parametrize("link", ["class", "image", "chain"])
def test_links_out_of_the_data_are_not_followed(link: str, secret: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "1.png").write_bytes(image())
    if link == "class":
        (root / "c").symlink_to(secret.parent)
    elif link == "image":
        (root / "a" / "2.png").symlink_to(secret)
    else:
        (root / "a" / "2.png").symlink_to(root / "b" / "3.png")
        (root / "b" / "3.png").symlink_to("../../outside/secret.png")

    with pytest.raises(TltrainError, match=r"leaves? the data folder"):
        everything(root)
    images = open_images([str(root)])
    assert secret.read_bytes() not in [images.source.read(index) for index in range(len(images.source))]
    assert images.bad


SECRETS = [".env", ".env.local", ".envrc", "prod.env", ".netrc", ".aws/credentials", ".ssh/id_ed25519", "deploy/id_rsa"]
SECRETS += ["tls.pem", "tls.key", "client.p12", "client.pfx", "a/.git-credentials", ".git/config", ".kube/config"]
SECRETS += [".docker/config.json", ".pypirc", "credentials.json", "store.jks", "passwords.kdbx", ".Renviron"]


def test_no_secret_is_in_the_upload_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    for name in ["net.py", "env.py", "keys/__init__.py", *SECRETS]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("CANARY" if name in SECRETS else "x = 1")
    (folder / "link.py").symlink_to(folder / ".env")

    entries, left_out = user_entries([folder])
    with zipfile.ZipFile(io.BytesIO(pack(entries).content)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}

    assert [name for name, data in content.items() if b"CANARY" in data] == []
    assert {"code/net.py", "code/env.py", "code/keys/__init__.py"} == set(content)
    for name in SECRETS:
        assert any(os.path.join(folder, name).startswith(path) for path in left_out), name
