"""The user's ``requirements.txt``: parse it, check it and install it with pip."""
