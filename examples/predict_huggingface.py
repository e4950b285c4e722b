"""Classifies a photo with a Hugging Face folder: python predict_huggingface.py FOLDER PHOTO

Needs torchvision and safetensors; for a network of timm, timm as well.
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


def load(folder):
    """Return the network with its weights, and config.json."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    if config["library_name"] == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True), config
    if config["architecture"] == "efficientnet_lite0":  # torchvision lacks it
        from tltrain.models.lite import efficientnet_lite0

        model = efficientnet_lite0(**config["arguments"])
    else:
        model = torchvision.models.get_model(config["architecture"], **config["arguments"])
    model.load_state_dict(load_file(Path(folder, "model.safetensors")))
    return model, config


def prepare(photo, p):
    """Return the photo as float32 [1, 3, H, W], as preprocessor_config.json says."""
    interpolation = InterpolationMode(Image.Resampling(p["resample"]).name.lower())
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    image = F.resize(image, [p["size"]["shortest_edge"]], interpolation=interpolation)
    image = F.pil_to_tensor(F.center_crop(image, [p["crop_size"]["height"], p["crop_size"]["width"]]))
    return F.normalize(image * p["rescale_factor"], p["image_mean"], p["image_std"]).unsqueeze(0)


def main(folder, photo):
    model, config = load(folder)
    preprocessing = json.loads(Path(folder, "preprocessor_config.json").read_text(encoding="utf-8"))
    with torch.inference_mode():
        logits = model.eval()(prepare(photo, preprocessing))[0]
    probabilities = (logits / config["temperature"]).softmax(dim=0)
    top = probabilities.topk(min(5, len(probabilities)))
    for probability, number in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"{probability:.6f}  {config['id2label'][str(number)]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
