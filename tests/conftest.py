"""The fixtures that every test file may ask for."""

pytest_plugins = ["s3_server", "stores"]
