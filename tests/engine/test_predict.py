"""Prediction with Ray Data: the same as in this process, also where it is cut short."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from trained import train_tiny

from tltrain.engine.predict import classify_on_ray
from tltrain.errors import ResourceError
from tltrain.inference import parts
from tltrain.inference.finished import find_model, open_model
from tltrain.inference.images import open_images
from tltrain.inference.parts import PredictionFile
from tltrain.inference.predict import Classified, classify

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]


def test_ray_data_predicts_what_this_process_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SIZE", 16)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = train_tiny(tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    for number, content in enumerate(pq.read_table(tmp_path / "test.parquet").column("image").to_pylist()):
        (folder / f"{number:02d}.png").write_bytes(b"broken" if number == 20 else content)
    images, place = open_images([str(folder)]), find_model(run.uri)
    model = open_model(place)
    asked: list[int] = []

    def on_ray(requests: list[np.ndarray]) -> Generator[Classified, None, None]:
        with closing(classify_on_ray(place, images.source, requests, batch_size=8, workers=1)) as batches:
            for batch in batches:
                asked.extend([*batch.positions.tolist(), *batch.bad])
                yield batch
                if len(asked) < 45 and cut:
                    raise KeyboardInterrupt

    def write(name: str, how: object) -> None:
        file = PredictionFile(str(tmp_path / name))
        file.write(images, model.classes, "digest", 8, how, lambda done, kept: None)  # type: ignore[arg-type]

    cut = True
    with pytest.raises(KeyboardInterrupt):
        write("ray.parquet", on_ray)
    done = len(list((tmp_path / "ray.parquet.parts").glob("part-*")))
    asked.clear()
    cut = False
    write("ray.parquet", on_ray)
    write("here.parquet", lambda requests: classify(model, images.source, requests, num_workers=0))

    assert sorted(asked) == list(range(16 * done, 45))
    ours, here = (pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in ("ray", "here"))
    assert ours["id"] == here["id"]
    assert ours["prediction"] == here["prediction"]
    np.testing.assert_allclose(ours["probability"], here["probability"], rtol=1e-5)
    assert (tmp_path / "ray.bad.csv").read_text() == (tmp_path / "here.bad.csv").read_text()
    with pytest.raises(ResourceError, match="999 processes with the model were asked for"):
        list(classify_on_ray(place, images.source, [np.arange(3)], batch_size=8, workers=999))
