"""The fixtures that every test file may ask for."""

from hypothesis import settings

pytest_plugins = ["s3_server", "ray_cluster", "stores"]

# How long an example takes is the machine's affair.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
