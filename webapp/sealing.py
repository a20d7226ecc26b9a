"""Secrets in the database: encrypted, or hashed, with keys derived from `SECRET_KEY`, one for each
purpose. A stolen copy of the database is not enough to read or guess them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flask import current_app


def sealer(purpose: str) -> Fernet:
    """Return the cipher for secrets of one purpose."""
    return Fernet(base64.urlsafe_b64encode(_key(purpose)))


def keyed_hash(purpose: str, *parts: str) -> str:
    """Return 32 hexadecimal digits that are the same for the same texts, and from which nobody
    without the key can tell the texts.
    """
    text = "\0".join(parts).encode()
    return hmac.new(_key(purpose), text, hashlib.sha256).hexdigest()[:32]


def _key(purpose: str) -> bytes:
    derive = HKDF(SHA256(), length=32, salt=None, info=f"hemoscan {purpose}".encode())
    return derive.derive(current_app.config["SECRET_KEY"].encode())
