"""The engine: one thread that decodes for everybody, and the versions that can answer."""
