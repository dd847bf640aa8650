"""Where bytes are kept: names that are never used twice, durable before they are named."""

from storage.blobs.files import FileBlobs, file_size
from storage.blobs.port import Blobs

__all__ = ["Blobs", "FileBlobs", "file_size"]
