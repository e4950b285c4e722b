"""Requests: built from the spec alone, the same for the same input, and nothing of the user's reaches a shell."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny import tiny_spec

from tltrain.errors import SpecError
from tltrain.jobs.request import build_package, build_request, local_paths, new_job_id, relocated
from tltrain.jobs.upload import Entry, Package, pack, package_entries, unpack, user_entries
from tltrain.spec.load import dump_yaml, load_spec, parse_spec
from tltrain.spec.schema import Spec

EMPTY = Package(b"", ())


def spec_with(tmp_path: Path, **changes: object) -> Spec:
    return tiny_spec(tmp_path / "digits", dict(changes))


def names_in(package: Package) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(package.content)) as archive:
        return set(archive.namelist())


def test_same_files_give_the_same_bytes_whenever_they_were_written(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b.py", "a.py")]
    for path in paths:
        path.write_text(path.name)
    entries = [Entry(path.name, path) for path in paths]

    first = pack(entries)
    os.utime(paths[0], (0, 0))
    paths[1].chmod(0o777)
    second = pack(reversed(entries))

    assert first.content == second.content
    assert first.name == second.name
    paths[0].write_text("other")
    assert pack(entries).name != first.name


def test_upload_holds_the_spec_and_the_package_and_nothing_else(tmp_path: Path) -> None:
    spec = spec_with(tmp_path)

    package = build_package(spec)

    names = names_in(package)
    assert {"spec.yaml", "tltrain/run.py", "tltrain/report/page.css"} <= names
    assert all(name == "spec.yaml" or name.startswith("tltrain/") for name in names)
    assert not any("__pycache__" in name for name in names)
    assert dict(package.files)["spec.yaml"] == len(dump_yaml(spec).encode())
    assert names_in(build_package(spec, with_tltrain=False)) == {"spec.yaml"}


def test_package_in_the_upload_imports_by_itself(tmp_path: Path) -> None:
    for entry in package_entries():
        path = tmp_path / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(entry.source if isinstance(entry.source, bytes) else entry.source.read_bytes())

    code = "import tltrain.run, tltrain.report.page; print(tltrain.run.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.stdout.strip() == str(tmp_path / "tltrain" / "run.py"), done.stderr


def test_what_must_not_travel_is_left_out_of_a_folder_and_listed(tmp_path: Path) -> None:
    code = tmp_path / "code"
    kept = ["net.py", "sub/helper.py", "classes.txt"]
    dropped = [".git/config", ".env", "data/x.png", "runs/r/run.json", "old/run.json", "t.parquet", "w.safetensors"]
    dropped += ["sub/__pycache__/a.pyc", "venv/bin/python", "sub/.ssh/id", "key.pem"]
    for name in [*kept, *dropped]:
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(name)
    (code / "link.py").symlink_to("/etc/passwd")
    (code / "etc").symlink_to("/etc")

    entries, left_out = user_entries([code])

    assert {entry.name for entry in entries} == {f"code/{name}" for name in kept}
    for name in ("code/.git/", "code/.env", "code/t.parquet", "code/old/", "code/link.py", "code/etc/"):
        assert f"{tmp_path}/{name}" in left_out


def test_file_that_is_named_itself_is_taken(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("x")

    assert [entry.name for entry in user_entries([tmp_path / "train.parquet"])[0]] == ["train.parquet"]


def test_all_problems_of_uploads_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "spec.yaml", tmp_path / "x.py", tmp_path / "a" / "x.py"):
        path.write_text("")

    with pytest.raises(SpecError) as caught:
        user_entries([tmp_path / "spec.yaml", tmp_path / "x.py", tmp_path / "a" / "x.py", tmp_path / "missing"])

    assert [problem.where for problem in caught.value.problems] == [
        str(tmp_path / name) for name in ("spec.yaml", "a/x.py", "missing")
    ]


def test_upload_above_rays_limit_is_refused_with_its_largest_files() -> None:
    noise = os.urandom(3000)

    with pytest.raises(SpecError, match=r"larger than the 2.0 KiB that Ray takes.*big.bin \(2.9 KiB\)"):
        pack([Entry("big.bin", noise), Entry("small.txt", b"x")], limit=2048)
    assert pack([Entry("big.bin", noise)], limit=4096).files == (("big.bin", 3000),)


def test_uploaded_paths_of_the_spec_lead_into_the_upload(tmp_path: Path) -> None:
    spec = spec_with(tmp_path)
    digits = tmp_path / "digits"

    package = build_package(spec, [digits / "train.parquet", digits / "test.parquet"])

    text = next(entry.source for entry in unpack(package.content) if entry.name == "spec.yaml")
    far = parse_spec(text.decode(), where="spec.yaml", base=Path("/job")).spec  # type: ignore[union-attr]
    assert (far.data.train, far.data.test) == ("/job/train.parquet", "/job/test.parquet")
    assert far.storage == spec.storage
    assert dict(local_paths(spec, [digits / "train.parquet"])) == {"storage": spec.storage, "data.test": spec.data.test}


def test_paths_behind_a_prefix_lead_into_the_upload_too(tmp_path: Path) -> None:
    (tmp_path / "sets" / "flowers").mkdir(parents=True)
    sources = {"train": "huggingface:sets/flowers:train", "val": "webdataset:shards/*.tar", "test": "huggingface:a/b"}
    text = f"name: x\nmodel: {{name: resnet18}}\ndata: {json.dumps(sources)}\n"
    spec = parse_spec(text, where="x", base=tmp_path).spec

    moved = relocated(spec, [tmp_path / "sets"]).data

    assert (moved.train, moved.test) == ("huggingface:sets/flowers:train", "huggingface:a/b")
    assert ("data.val", str(tmp_path / "shards" / "*.tar")) in local_paths(spec, [tmp_path / "sets"])
    assert "data.train" not in dict(local_paths(spec, [tmp_path / "sets"]))
    assert "data.train" in dict(local_paths(spec, []))


@pytest.mark.parametrize(
    "name", ["$(touch pwned)", "a; touch pwned", "it's", 'a"b', "a\nb", "`touch pwned`", "-rf", "a b"]
)
def test_odd_names_never_reach_a_shell(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    (folder / name).mkdir(parents=True)
    (folder / name / f"{name}.py").write_text("x = 1")

    package = build_package(spec_with(tmp_path), [folder])
    request = build_request("tiny-012345", 1, package, max_duration_s=5)

    assert f"code/{name}/{name}.py" in names_in(package)
    assert request.entrypoint == "python -m tltrain.run spec.yaml --max-duration 5"
    assert name not in json.dumps(request.body())
    spec = dump_yaml(spec_with(tmp_path)).replace("name: tiny", f"name: {json.dumps(name)}", 1)
    with pytest.raises(SpecError, match="name"):
        parse_spec(spec, where="x", base=tmp_path)


def test_entrypoint_survives_a_shell_word_for_word(tmp_path: Path) -> None:
    assignment = "data.train=$(touch pwned); 'x' \"y\"\n`z`"
    request = build_request("tiny-012345", 1, EMPTY, sets=[assignment])

    said = subprocess.run(
        ["sh", "-c", request.entrypoint.replace("python -m tltrain.run", "printf '%s|'", 1)],
        capture_output=True,
        cwd=tmp_path,
        text=True,
        check=True,
    )

    assert said.stdout == f"spec.yaml|--set|{assignment}|"
    assert shlex.split(request.entrypoint) == list(request.argv)
    assert not (tmp_path / "pwned").exists()


def test_secrets_travel_as_references(tmp_path: Path) -> None:
    request = build_request("tiny-012345", 2, EMPTY, cluster_secrets={"AWS_SECRET_ACCESS_KEY": "file:/run/secrets/aws"})

    assert request.submission_id == "tiny-012345-2"
    assert request.metadata == {"tltrain_job": "tiny-012345", "tltrain_attempt": "2"}
    assert json.loads(request.env_vars["TLTRAIN_SECRETS"]) == {"AWS_SECRET_ACCESS_KEY": "file:/run/secrets/aws"}


@pytest.mark.parametrize(
    "address", ["s3://KEY:CANARY@bucket/x", "s3://b/x?secret_key=CANARY", "https://h/w.pth?sig=CANARY"]
)
def test_address_with_a_secret_is_refused_and_not_shown(address: str, tmp_path: Path) -> None:
    key = "model.weights" if address.startswith("https") else "storage"

    with pytest.raises(SpecError) as caught:
        build_package(spec_with(tmp_path, **{key: address}))

    assert caught.value.problems[0].key == key
    assert "CANARY" not in str(caught.value)


def test_job_ids_are_names_of_their_run_and_differ() -> None:
    ids = {new_job_id("quickstart") for _ in range(50)}

    assert len(ids) == 50
    assert all(own_id.startswith("quickstart-") for own_id in ids)


def test_shipped_jobs_fit_into_an_upload(project_dir: Path) -> None:
    jobs = sorted((project_dir / "jobs").glob("*.yaml"))
    assert jobs
    for path in jobs:
        assert len(build_package(load_spec(path).spec).content) < 1 << 20
