"""What the user asked for: the schema of a spec, reading it, and saying what is wrong with it."""
