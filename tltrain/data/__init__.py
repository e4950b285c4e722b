"""Images and labels: sources, decoding, transforms, loaders."""
