"""Classifies a photo with an ONNX export; needs onnxruntime, numpy and pillow: python predict_onnx.py FOLDER PHOTO"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(photo, *, resize_size, crop_size, interpolation, **_):
    """Return the photo as uint8 [1, 3, crop_size, crop_size]: its shorter side resized, its centre cropped."""
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    short = min(image.size)
    width, height = (int(resize_size * side / short) for side in image.size)
    left, top = round((width - crop_size) / 2), round((height - crop_size) / 2)
    image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    image = image.crop((left, top, left + crop_size, top + crop_size))
    return np.asarray(image).transpose(2, 0, 1)[None]


def main(folder, photo):
    session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    images = prepare(photo, **json.loads(about["preprocessing"]))  # scaling and normalising are in the graph
    (probabilities,) = session.run(["probabilities"], {"images": images})
    classes = json.loads(about["classes"])
    for number in probabilities[0].argsort()[::-1][:5]:
        print(f"{probabilities[0, number]:.6f}  {classes[number]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
