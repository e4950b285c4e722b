"""Runs made visible, from their folders alone. Never imports torch or ray."""
