"""Using a finished model: opening it, classifying images, answering requests. Never imports ray."""
