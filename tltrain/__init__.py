"""Distributed transfer learning on Ray: fine-tune, search and evaluate pretrained vision models."""
