"""Classifies a photo with torchvision and safetensors: python predict_safetensors.py FOLDER PHOTO

FOLDER is a safetensors export, or the `model` folder of a run, which has the same files.
"""

import json
import sys
from pathlib import Path

import torch
import torchvision
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F


def build(name, arguments):
    """Return the network with random weights."""
    if name == "efficientnet_lite0":  # torchvision lacks it
        from tltrain.models.lite import efficientnet_lite0

        return efficientnet_lite0(**arguments)
    if name.startswith("timm/"):
        import timm

        return timm.create_model(name.removeprefix("timm/"), **arguments)
    return torchvision.models.get_model(name, **arguments)


def prepare(photo, p):
    """Return the photo as float32 [1, 3, crop_size, crop_size], normalised."""
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    image = F.resize(image, [p["resize_size"]], interpolation=InterpolationMode(p["interpolation"]))
    image = F.pil_to_tensor(F.center_crop(image, [p["crop_size"]]))
    return F.normalize(F.to_dtype(image, torch.float32, scale=True), p["mean"], p["std"]).unsqueeze(0)


def main(folder, photo):
    card = json.loads(Path(folder, "model.json").read_text(encoding="utf-8"))
    model = build(card["name"], card["arguments"]).eval()
    model.load_state_dict(load_file(Path(folder, "model.safetensors")))
    with torch.inference_mode():
        logits = model(prepare(photo, card["preprocessing"]))[0]
    probabilities = (logits / card.get("temperature", 1.0)).softmax(dim=0)
    top = probabilities.topk(min(5, len(probabilities)))
    for probability, number in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"{probability:.6f}  {card['classes'][number]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
