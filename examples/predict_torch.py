"""Classifies a photo with a torch export; needs torch, numpy and pillow: python predict_torch.py FOLDER PHOTO"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps


def prepare(photo, *, resize_size, crop_size, interpolation, **_):
    """Return the photo as uint8 [1, 3, crop_size, crop_size]: its shorter side resized, its centre cropped."""
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    short = min(image.size)
    width, height = (int(resize_size * side / short) for side in image.size)
    left, top = round((width - crop_size) / 2), round((height - crop_size) / 2)
    image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    image = image.crop((left, top, left + crop_size, top + crop_size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0)


def main(folder, photo):
    about = json.loads(Path(folder, "model.json").read_text(encoding="utf-8"))
    model = torch.export.load(Path(folder, "model.pt2")).module()
    images = prepare(photo, **about["preprocessing"])  # scaling and normalising are in the graph
    with torch.inference_mode():
        probabilities = model(images)["probabilities"][0]
    top = probabilities.topk(min(5, len(probabilities)))
    for probability, number in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"{probability:.6f}  {about['classes'][number]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
