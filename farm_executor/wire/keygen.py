"""Make key files that let both sides of a farm speak TLS.

This module owns the content of our certificates. It must not know where key files are looked for, nor how they are
used. Only this module needs the package ``cryptography``: to use such a file, Python's own `ssl` is enough.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
import re

from farm_executor.errors import AuthenticationError

__all__ = ["make_key_file_content", "make_monitor_content"]

# RFC 5280, 4.1.2.5: "no well-defined expiration date". The certificate is trusted as long as it is in the key file:
# an expiry date would stop the farm one day, and a wrong clock could stop it on any day.
_BEGIN = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
_END = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.timezone.utc)


def make_key_file_content(secret: bytes | None = None) -> bytes:
    """Return a new self-signed certificate, its private key (P-256) and a secret, each as a PEM block.

    Args:
        secret: The secret to use; None for a new one of 32 bytes.

    Raises:
        AuthenticationError: The package ``cryptography`` is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise AuthenticationError(
            "to make such a key needs the package cryptography (the extra tls): python -m pip install "
            "cryptography. "
            "It may be made on another machine, and copied; to use it needs nothing more"
        ) from None
    private_key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "farm_executor")])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .sign(private_key, hashes.SHA256())
    )
    blocks = [
        certificate.public_bytes(serialization.Encoding.PEM),
        private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        _pem_of_secret(secret or os.urandom(32), b"SECRET"),
    ]
    return b"".join(blocks).rstrip()


def make_monitor_content(secret: bytes, content: bytes) -> bytes:
    """Return what a monitor's key file holds: a secret, and a key file's certificate without its private key.

    Args:
        secret: The monitor's.
        content: That of the key file.
    """
    found = re.search(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", content, re.DOTALL)
    return ((found[0] if found else b"") + _pem_of_secret(secret, b"MONITOR")).rstrip()


def _pem_of_secret(secret: bytes, name: bytes) -> bytes:
    """Return the secret as its block in a key file."""
    text = base64.b64encode(secret)
    return b"-----BEGIN FARM EXECUTOR %b-----\n%b\n-----END FARM EXECUTOR %b-----\n" % (name, text, name)
