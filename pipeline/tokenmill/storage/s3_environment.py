"""Settings of the S3 client in the environment that cannot work.

The client would retry for a minute before it reports them, in words of its own.
"""

import os
import ssl

from tokenmill.errors import UserError

# Secrets of Kubernetes and files of `echo` end in a line break. No valid value has white space.
_WITHOUT_SPACES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
# The first one that is set counts.
_CA_BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


def check_s3_environment() -> None:
    """Raise `UserError` for a variable that the S3 client cannot use. No value is printed."""
    for name in _WITHOUT_SPACES:
        if any(character.isspace() for character in os.environ.get(name, "")):
            raise UserError(
                f"{name} contains a blank or a line break; remove it (a secret made with `echo` "
                "ends in one, with `echo -n` it does not)"
            )
    for name in _CA_BUNDLES:
        path = os.environ.get(name)
        if path is not None:
            _check_ca_bundle(name, path)
            return


def _check_ca_bundle(name: str, path: str) -> None:
    if not path.strip():
        raise UserError(f"{name} is empty; unset it, or set it to a file of certificates")
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise UserError(
            f"{name}={path}: not a readable file of certificates in PEM format "
            f"({error.strerror or error}); correct it"
        ) from error
