"""The user's requirements: read, checked and installed with pip."""
