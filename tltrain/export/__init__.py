"""A trained model in formats that other programs read, each checked on images before it is handed over."""
