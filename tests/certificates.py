"""Certificates for tests: of a CA of their own, expired ones, encrypted ones; as files."""

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


class Authority:
    """A CA with a certificate at ``path``, and what it signs in the same folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self._sign(name, self.key, ca=True, expired=False).public_bytes(PEM))

    def issue(self, name: str, *, expired: bool = False, password: bytes | None = None) -> Path:
        """A file with a certificate for localhost and 127.0.0.1, and its private key."""
        key = ec.generate_private_key(ec.SECP256R1())
        path = self.folder / f"{name} of {self.name}.pem"
        path.write_bytes(self._sign(name, key, ca=False, expired=expired).public_bytes(PEM) + pem_of(key, password))
        return path

    def _sign(self, name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool, expired: bool) -> x509.Certificate:
        now = dt.datetime.now(dt.timezone.utc)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(now + dt.timedelta(days=-1 if expired else 1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def pem_of(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)
