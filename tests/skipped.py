"""What a reader skips of a stream, worked out without a reader."""

import struct

from farm_executor.core.frames import BULK, HEADER, HEADER_SIZE, KIND_SHIFT, OPTIONAL, FrameType, Kind


def without_skipped(stream: bytes) -> bytes:
    """The stream without the frames of types that are unknown and optional, as far as it can be read."""
    known = {int(kind) for kind in FrameType}
    out, at = b"", 0
    while at + HEADER_SIZE <= len(stream):
        length, kind, flags, _, _ = HEADER.unpack_from(stream, at)
        end = at + HEADER_SIZE + length
        if flags & BULK and kind in known and end <= len(stream) and length >= 4:
            n = min(struct.unpack_from("<I", stream, at + HEADER_SIZE)[0], (length - 4) // 8)
            table = struct.unpack_from(f"<{n}Q", stream, at + HEADER_SIZE + 4)
            end += sum(entry & ~(3 << KIND_SHIFT) for entry in table if entry >> KIND_SHIFT != Kind.REFERENCE)
        if end > len(stream) or (kind not in known and not kind & OPTIONAL):
            break
        if kind in known:
            out += stream[at:end]
        at = end
    return out + stream[at:]
