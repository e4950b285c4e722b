"""Writes docs/report.png, the top of a finished sweep's page: `python docs/make_report_picture.py runs/quickstart`.

Needs Chromium (`--chromium PATH`, by default the first that is found). The page is made anew; the run is not changed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from tltrain.report.page import build_report
from tltrain.run_folder import RunFolder

OUT = Path(__file__).with_name("report.png")
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1160, 1424
MAX_BYTES = 300_000


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="the folder of a finished sweep")
    parser.add_argument("--out", type=Path, default=OUT, help="the picture to write")
    parser.add_argument("--chromium", help="the browser")
    options = parser.parse_args()
    program = options.chromium or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        parser.error(f"no browser is found; install one of {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder) / "report.html", Path(folder) / "page.png"
        page.write_text(build_report(RunFolder.open(options.run)), encoding="utf-8")
        take(program, page, shot)
        shrink(shot, options.out)


def take(program: str, page: Path, shot: Path) -> None:
    """Write a picture of the first HEIGHT pixels of `page`, at twice the resolution."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2"]
    place = [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}"]
    subprocess.run([program, *flags, *place, page.as_uri()], check=True, timeout=120, capture_output=True)


def shrink(shot: Path, out: Path) -> None:
    """Write `shot` with a palette of few colours, which a page of flat colours needs no more of, at most MAX_BYTES."""
    with Image.open(shot) as picture:
        wide = picture.convert("RGB").resize((WIDTH * 3 // 2, HEIGHT * 3 // 2), Image.Resampling.LANCZOS)
    for colors in (256, 128, 64, 32):
        wide.quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(out, optimize=True)
        if out.stat().st_size <= MAX_BYTES:
            print(f"{out}: {out.stat().st_size:,} bytes, {colors} colours")
            return
    raise SystemExit(f"{out} has {out.stat().st_size:,} bytes, more than {MAX_BYTES:,}")


if __name__ == "__main__":
    main()
