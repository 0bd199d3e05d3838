# Signs messages for fleetbus: see docs/signing.md. It needs the package cryptography.
import base64
import hashlib
import os
import struct
import time

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

HEADER = "Fleetbus-Signature"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signer:
    """Signs for the account with the public key audience. Make one with from_creds or from_key."""

    def __init__(self, key, name, audience):
        self.key, self.name, self.audience = key, name, audience

    @classmethod
    def from_key(cls, pem, audience):
        """pem is the private key of a client certificate, on P-256 or of Ed25519."""
        key = serialization.load_pem_private_key(pem, None)
        der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(key, b64(der), audience)

    @classmethod
    def from_creds(cls, text, audience):
        """text is the content of a creds file."""
        seed = next(line for line in text.splitlines() if line.startswith("SU"))
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))[2:34]
        key = ed25519.Ed25519PrivateKey.from_private_bytes(raw)
        public = bytes([20 << 3]) + key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        name = base64.b32encode(public + struct.pack("<H", crc16(public))).rstrip(b"=").decode()
        return cls(key, name, audience)

    def sign(self, subject, body):
        """What the header HEADER has, of a message that is published now."""
        return self.sign_at(subject, body, int(time.time() * 1000), b64(os.urandom(16)))

    def sign_at(self, subject, body, ms, nonce):
        fields = [b"fleetbus.signature.v1", self.audience.encode(), subject.encode(), b"%d" % ms, nonce.encode(), hashlib.sha256(body).digest()]
        signed = b"".join(struct.pack(">I", len(f)) + f for f in fields)
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            sig = self.key.sign(signed)
        else:
            sig = self.key.sign(signed, ec.ECDSA(hashes.SHA256()))
        return "v1;key=%s;time=%d;nonce=%s;sig=%s" % (self.name, ms, nonce, b64(sig))


def exchange(name, key):
    """What is signed in place of a subject, of a message to an exchange of AMQP that is not amq.topic."""
    return "amqp:%d:%s/%s" % (len(name.encode()), name, key)


def crc16(data):
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc
